import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from relict_lightning.encoders import GradientEncoder
from relict_lightning.index import combine, digest_module
from relict_lightning.index.fingerprint import digest_array
from relict_lightning.segmenters import IntensitySegmenter


def _encoder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))


def test_equal_modules_have_equal_digests():
    encoder = _encoder()

    assert digest_module(encoder) == digest_module(copy.deepcopy(encoder))


def test_each_parameter_and_buffer_is_part_of_the_digest():
    encoder = _encoder()
    digests = {digest_module(encoder)}

    for name in encoder.state_dict():
        other = copy.deepcopy(encoder)
        other.state_dict()[name].view(-1)[0].add_(1)
        digests.add(digest_module(other))

    assert len(digests) == 1 + len(encoder.state_dict())


def test_the_smallest_change_of_one_weight_changes_the_digest():
    encoder, other = _encoder(), _encoder()
    with torch.no_grad():
        other[1].weight[2, 3] = torch.nextafter(other[1].weight[2, 3], torch.tensor(torch.inf))

    assert digest_module(encoder) != digest_module(other)


def test_configuration_without_weights_is_part_of_the_digest():
    modules = [GradientEncoder(), GradientEncoder(4), IntensitySegmenter(), IntensitySegmenter(3), nn.Flatten()]

    assert len({digest_module(module) for module in modules}) == len(modules)


def test_bfloat16_weights_have_a_digest_of_their_own():
    assert digest_module(_encoder().bfloat16()) != digest_module(_encoder())


def test_a_module_with_extra_state_has_a_digest():
    class Versioned(nn.Flatten):
        def __init__(self, version):
            super().__init__()
            self.version = version

        def get_extra_state(self):
            return {"version": self.version}

    assert digest_module(Versioned(1)) != digest_module(Versioned(2))


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=12), data=st.data())
def test_one_changed_value_changes_an_arrays_digest(values, data):
    array = np.array(values, dtype=np.float32)
    changed = array.copy()
    position = data.draw(st.integers(0, len(values) - 1))
    changed[position] = np.nextafter(changed[position], np.float32(np.inf if changed[position] < 1 else -np.inf))

    assert digest_array(array) == digest_array(array.copy())
    assert digest_array(array) != digest_array(changed)


@pytest.mark.parametrize(
    "other", [np.zeros((2, 3), np.float32), np.zeros(6, np.float64), np.zeros(6, np.int32)], ids=["shape", "f8", "i4"]
)
def test_shape_and_dtype_are_part_of_an_arrays_digest(other):
    assert digest_array(np.zeros(6, np.float32)) != digest_array(other)


def test_memory_layout_is_no_part_of_an_arrays_digest():
    array = np.arange(6.0).reshape(2, 3)

    assert digest_array(array) == digest_array(np.asfortranarray(array))


def test_every_part_and_its_name_are_part_of_the_fingerprint():
    fingerprints = [combine(parts) for parts in ({"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1}, {"a": "1", "b": 2})]

    assert len(set(fingerprints)) == 4


def test_a_plain_attribute_of_a_submodule_is_part_of_the_configuration():
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

    assert digest_module(nn.Sequential(Scaled(2.0))) == digest_module(nn.Sequential(Scaled(2.0)))
    assert digest_module(nn.Sequential(Scaled(2.0))) != digest_module(nn.Sequential(Scaled(3.0)))


def test_the_training_flag_is_not_part_of_the_configuration():
    module = nn.Sequential(nn.Dropout())

    assert digest_module(module.train()) == digest_module(module.eval())
