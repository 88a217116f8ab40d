import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate
from relict_lightning.report.headline import audit_headline, headline, percent, rounded_p


def test_an_onset_is_stated_with_its_step_rate_and_interval(evaluations, onset):
    result = headline(evaluations(0, 0, 12), onset=onset)

    assert result.status == "onset"
    assert result.sentence == (
        "Memorization onset at step 300 (epoch 3): 18.8 % of samples are replicas (95 % interval 10.1 % to 30.5 %)."
    )
    assert "12 of 64 samples" in result.details[0]
    assert "permutation test over 100 patients; p = 0.00020, at a threshold of 0.0033" in result.details[0]
    assert "runs/step=200.ckpt, saved at step 200" in result.details[1]
    assert "0 of 64 samples (0.0 %, 95 % interval 0.0 % to 5.6 %)" in result.details[1]


def test_an_onset_that_samples_that_lean_established_says_so_and_what_that_means(evaluations, onset):
    leaning = dataclasses.replace(onset, leaning_rate=estimate_rate(9, 64))

    result = headline(evaluations(0, 0, 12), onset=leaning)

    assert result.sentence == (
        "Memorization onset at step 300 (epoch 3): 14.1 % of samples lean towards a training patient (95 % interval "
        "6.6 % to 25.0 %)."
    )
    assert "too blurred to be called replicas" in result.details[0]
    assert result.details[1].startswith("12 of 64 samples were declared replicas.")


def test_what_later_samples_said_of_the_checkpoint_is_told_or_that_there_were_none(evaluations, onset):
    verified = dataclasses.replace(onset, checkpoint_finding="clean: 0/64, with the first ones 0/128")

    assert headline(evaluations(0, 0, 12), onset=onset).details[-1].startswith("It was not checked again")
    assert headline(evaluations(0, 0, 12), onset=verified).details[-1] == (
        "Samples drawn from it afterwards: clean: 0/64, with the first ones 0/128."
    )


def test_an_onset_without_a_checkpoint_says_that_there_is_none(evaluations, onset):
    alone = dataclasses.replace(onset, checkpoint_path=None, checkpoint_step=None, checkpoint_rate=None)

    assert "No checkpoint from before the onset" in headline(evaluations(0, 0, 12), onset=alone).details[-1]


def test_no_onset_is_stated_as_an_upper_bound_never_as_zero(evaluations):
    result = headline(evaluations(*[0] * 12), onset=None)

    assert result.status == "none"
    assert result.sentence == (
        "No memorization onset in 12 evaluations: at step 1200, at most 5.6 % of samples are replicas (95 % interval)."
    )
    assert "absence of evidence" in result.details[0]


def test_replicas_without_an_onset_are_not_hidden_behind_the_bound(evaluations):
    sentence = headline(evaluations(0, 3), onset=None).sentence

    assert "but at step 200 4.7 % of samples were declared replicas" in sentence


def test_a_rate_that_was_higher_before_is_told(evaluations):
    assert "1 of 64 samples" in headline(evaluations(0, 1, 0), onset=None).details[-1]


def test_without_a_control_no_rate_is_stated_and_no_safety_claimed(evaluations):
    result = headline(evaluations(0, 0, control=False), onset=None)

    assert result.status == "unknown"
    assert result.sentence == "No replica rate can be given for 2 evaluations: there is no held-out control."
    assert "not a finding that the model is safe" in result.details[0]


@given(share=st.floats(1e-9, 1))
def test_a_positive_share_never_reads_as_zero(share):
    assert float(percent(share).removesuffix(" %")) / 100 == pytest.approx(share, rel=0.06)


@given(value=st.floats(1e-4, 1))
def test_a_p_value_reads_as_itself_to_two_digits(value):
    assert float(rounded_p(value)) == pytest.approx(value, rel=0.06)


def test_numbers_that_were_not_measured_are_dashes():
    assert (percent(math.nan), rounded_p(math.nan)) == ("–", "–")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step=-1"),
        ({"p_value": 1.5}, "p_value=1.5"),
        ({"alpha_spent": math.nan}, "alpha_spent=nan"),
        ({"checkpoint_step": 300}, "checkpoint_step=300"),
    ],
)
def test_an_onset_that_cannot_be_is_refused_with_its_value(onset, change, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(onset, **change)


def test_an_audit_without_replicas_states_the_upper_bound_and_claims_no_safety(evaluations):
    result = audit_headline(evaluations(0)[0])

    assert result.status == "clear"
    assert result.sentence == (
        "None of 64 samples was declared a replica: at most 5.6 % of samples are (95 % interval)."
    )
    assert "p = 0.50" in result.details[0]
    assert "absence of evidence" in result.details[1]


def test_an_audit_with_replicas_states_the_rate_with_its_interval(evaluations):
    result = audit_headline(evaluations(12)[0])

    assert result.status == "replicas"
    assert result.sentence == ("12 of 64 samples (18.8 %, 95 % interval 10.1 % to 30.5 %) were declared replicas.")


def test_an_audit_without_a_control_gives_no_rate(evaluations):
    assert audit_headline(evaluations(0, control=False)[0]).status == "unknown"
