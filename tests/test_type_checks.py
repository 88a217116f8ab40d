"""The checks of types and shapes that `conftest.py` switches on see what goes in and what comes out."""

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional import clopper_pearson_interval
from relict_lightning.results import RateEstimate

# What the functions of the package are decorated with.
checked = jaxtyping.jaxtyped(typechecker=None)


@checked
def _paired(generated: Float[Tensor, "n k"], training: Float[Tensor, "n k"], *, longer: int = 0) -> Float[Tensor, " n"]:
    return (generated * training).sum(1).repeat(1 + longer)


@checked
def _of_pairs(generated: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    # Axes of one name in two functions, of other sizes.
    return _paired(generated.T, generated.T)


def test_shapes_that_agree_pass_in_nested_calls():
    assert _of_pairs(torch.ones(2, 3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("training", "options"),
    [
        pytest.param(torch.ones(3, 2), {}, id="another size of an axis"),
        pytest.param(torch.ones(2), {}, id="another number of axes"),
        pytest.param(torch.ones(2, 2, dtype=torch.int64), {}, id="whole numbers"),
        pytest.param(torch.ones(2, 2), {"longer": 1}, id="another size of what is returned"),
        pytest.param(torch.ones(2, 2), {"longer": "1"}, id="another type"),
    ],
)
def test_what_does_not_fit_its_annotation_is_refused(training, options):
    with pytest.raises(BeartypeCallHintViolation):
        _paired(torch.ones(2, 2), training, **options)


def test_the_functions_and_data_classes_of_the_package_are_checked():
    with pytest.raises(BeartypeCallHintViolation, match="successes"):
        clopper_pearson_interval("15", 50)
    with pytest.raises(BeartypeCallHintViolation, match="value"):
        RateEstimate(value="a third", low=0.0, high=1.0, successes=1, trials=3)
