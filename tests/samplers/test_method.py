import copy
import pickle

import pytest
import torch
from torch import nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers import FunctionSampler, MethodSampler


class Generative(nn.Module):
    """Draws noise with a generator, or from the global random state."""

    bias = 0.0

    def sample(self, n, *, generator):
        return torch.randn(n, 1, 4, 4, generator=generator)

    def sample_globally(self, n):
        return torch.randn(n, 1, 4, 4)

    def sample_steps(self, n, *, steps, scale=1.0, generator=None):
        return torch.full((n, 1, 4, 4), steps * scale)


def test_a_method_that_takes_a_generator_gets_one_seeded_for_the_call():
    first, again, other = (MethodSampler().sample(Generative(), 3, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(first, torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()

    MethodSampler().sample(Generative(), 3, seed=1)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_without_a_generator_draws_from_the_global_random_state():
    torch.manual_seed(5)
    expected = torch.randn(3, 1, 4, 4)
    torch.manual_seed(5)

    assert torch.equal(MethodSampler("sample_globally").sample(Generative(), 3, seed=1), expected)


def test_further_arguments_reach_the_method():
    images = MethodSampler("sample_steps", {"steps": 7, "scale": 2.0}).sample(Generative(), 1, seed=0)

    assert images.unique().tolist() == [14.0]


def test_a_function_gets_module_number_and_generator():
    module = Generative()
    seen = []

    def function(given, n, generator):
        seen.append((given, n, generator.initial_seed()))
        return torch.zeros(n, 1, 4, 4)

    FunctionSampler(function).sample(module, 4, seed=9)

    assert seen == [(module, 4, 9)]


def test_a_function_without_a_generator_gets_module_and_number():
    assert len(FunctionSampler(lambda module, n: torch.zeros(n, 1, 4, 4)).sample(None, 4, seed=9)) == 4


def test_a_function_without_a_signature_is_called():
    class Silent:
        __signature__ = "none"

        def __call__(self, module, n):
            return torch.zeros(n, 1, 4, 4)

    assert len(FunctionSampler(Silent()).sample(None, 4, seed=9)) == 4


def test_the_generator_lives_where_the_module_lives():
    devices = []

    class OnDevice(nn.Linear):
        def sample(self, n, *, generator):
            devices.append(generator.device.type)
            return torch.zeros(n, 1, 4, 4)

    MethodSampler().sample(OnDevice(1, 1), 1, seed=0)

    assert devices == ["cpu"]


@pytest.mark.parametrize(("module", "method"), [(nn.Linear(1, 1), "sample"), (Generative(), "bias")])
def test_a_module_without_the_method_is_told_what_to_add(module, method):
    message = (
        rf"{type(module).__name__} has no method `{method}\(n, \*, generator\)`.*`ReplicaMonitor\(sampler=\.\.\.\)`"
    )

    with pytest.raises(SamplerError, match=message):
        MethodSampler(method).sample(module, 2, seed=0)


class Conditional(nn.Module):
    """Returns images that its condition decides."""

    masks = torch.arange(3).reshape(3, 1, 1).expand(3, 4, 4)

    def sample(self, n, *, condition):
        return condition.reshape(n, 1, 1, 1).expand(n, 1, 4, 4).float()

    def sample_many(self, n, conditions, generator=None):
        return self.sample(n, condition=conditions)

    def sample_anyhow(self, n, **arguments):
        return self.sample(n, **arguments)

    def sample_masks(self, n, condition):
        return condition[:, None].float()

    def sample_blindly(self, n):
        return torch.zeros(n, 1, 4, 4)


@pytest.mark.parametrize("method", ["sample", "sample_many", "sample_anyhow"])
def test_conditions_reach_a_method_cycled_by_position(method):
    images = MethodSampler(method, conditions=[4, 5, 6]).sample_at(Conditional(), range(2, 6), [0, 1, 2, 3])

    assert images[:, 0, 0, 0].tolist() == [6, 4, 5, 6]


def test_conditions_reach_a_function():
    sampler = FunctionSampler(lambda module, n, condition: module.sample(n, condition=condition), conditions=[4, 5])

    assert sampler.sample(Conditional(), 3, seed=0)[:, 0, 0, 0].tolist() == [4, 5, 4]


def test_conditions_that_are_label_maps_are_those_of_the_samples():
    sampler = MethodSampler("sample_masks", conditions="masks", conditions_are_label_maps=True)

    label_maps = sampler.label_maps_at(Conditional(), range(1, 5))

    assert label_maps[:, 0, 0].tolist() == [1, 2, 0, 1]
    assert torch.equal(sampler.sample_at(Conditional(), range(1, 5), [0] * 4)[:, 0], label_maps.float())
    assert MethodSampler("sample_masks", conditions="masks").label_maps_at(Conditional(), [0]) is None


def test_conditions_that_nothing_takes_are_refused():
    with pytest.raises(
        SamplerError, match=r"MethodSampler\('sample_blindly'\) has conditions .*'condition' or 'conditions'"
    ):
        MethodSampler("sample_blindly", conditions=[1]).sample(Conditional(), 2, seed=0)


def test_label_maps_need_conditions():
    with pytest.raises(ConfigurationError, match=r"MethodSampler\(conditions_are_label_maps=True\) needs conditions"):
        MethodSampler(conditions_are_label_maps=True)


def test_texts_are_no_label_maps():
    sampler = MethodSampler(conditions=["old"], conditions_are_label_maps=True)

    with pytest.raises(SamplerError, match=r"needs label maps \[m, \*spatial\] as conditions; got a list"):
        sampler.label_maps_at(Conditional(), [0])


def test_a_sampler_can_be_copied_and_pickled():
    sampler = MethodSampler("sample", {"steps": 3}, conditions=[1, 2])

    for copied in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):  # noqa: S301 - written in this line
        assert (copied.method, copied.arguments, copied.conditions.given) == ("sample", {"steps": 3}, [1, 2])
