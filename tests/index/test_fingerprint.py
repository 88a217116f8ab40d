import copy
import subprocess
import sys
import textwrap
from enum import Enum
from functools import partial

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


@settings(max_examples=30)
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


class Holder(nn.Module):
    """Holds one plain attribute."""

    def __init__(self, value):
        super().__init__()
        self.value = value


class Buffered(nn.Module):
    """Holds a mean that is not saved with the weights."""

    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)


class Pooling(Enum):
    MEAN = 1
    MAX = 2


DIFFERENT = {
    "list": ([2], [4]),
    "list and tuple": ([2], (2,)),
    "nesting": ([[1], 2], [[1, 2]]),
    "none": (None, 0),
    "kind": (1, True),
    "text": ("1", 1),
    "dictionary value": ({"a": [1]}, {"a": [2]}),
    "dictionary key": ({"a": 1}, {"b": 1}),
    "set": ({1, 2}, {1, 3}),
    "dtype": (torch.float32, torch.float16),
    "device": (torch.device("cpu"), torch.device("meta")),
    "tensor": (torch.tensor([0.5]), torch.tensor([0.6])),
    "tensor dtype": (torch.tensor([1]), torch.tensor([1.0])),
    "tensors in a list": ([torch.zeros(2)], [torch.ones(2)]),
    "sparse tensor": (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
    "array": (np.zeros(2), np.ones(2)),
    "numpy number": (np.float32(1), np.float32(2)),
    "enumeration": (Pooling.MEAN, Pooling.MAX),
    "class": (nn.ReLU, nn.GELU),
    "function": (torch.relu, torch.tanh),
    "module in a list": ([nn.Flatten(1)], [nn.Flatten(2)]),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_every_plain_attribute_is_part_of_the_configuration(one, other):
    digest = digest_module(nn.Sequential(Holder(one)))

    assert digest == digest_module(nn.Sequential(Holder(copy.deepcopy(one))))
    assert digest != digest_module(nn.Sequential(Holder(other)))


def test_buffers_that_are_not_saved_are_part_of_the_configuration():
    assert digest_module(Buffered([0.5])) == digest_module(Buffered([0.5]))
    assert digest_module(Buffered([0.5])) != digest_module(Buffered([0.6]))


def test_the_order_of_a_dictionary_is_no_part_of_the_configuration():
    assert digest_module(Holder({"a": 1, "b": 2})) == digest_module(Holder({"b": 2, "a": 1}))


@pytest.mark.parametrize(
    "make", [object, lambda: partial(int, base=3), lambda: [object(), object()], lambda: {object()}]
)
def test_other_objects_count_by_their_type_and_not_by_their_address(make):
    # Both are alive at once, so that they cannot have one address.
    one, other = Holder(make()), Holder(make())

    assert digest_module(one) == digest_module(other)
    assert digest_module(one) != digest_module(Holder(Exception()))


def test_an_address_in_what_a_module_shows_of_itself_does_not_count():
    class Shown(Holder):
        def extra_repr(self):
            return f"value={self.value!r}"

    assert digest_module(Shown(object())) == digest_module(Shown(object()))


def test_a_hook_is_no_part_of_the_configuration():
    hooked = _encoder()
    hooked.register_forward_hook(lambda *_: None)

    assert digest_module(hooked) == digest_module(_encoder())


def test_attributes_that_contain_themselves_have_a_digest():
    module = Holder([1])
    module.value += [module.value, module]

    assert digest_module(module) == digest_module(copy.deepcopy(module))


def test_another_process_makes_the_same_digest():
    script = """
        import torch
        from torch import nn
        from relict_lightning.index import digest_module
        module = nn.Sequential(nn.Flatten())
        module.labels = {"cortex", "thalamus", "pons"}
        module.options = {"act": nn.ReLU, "mean": [0.1, torch.ones(2)], "log": object(), "f": torch.relu}
        print(digest_module(module))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]

    # Text is hashed with another seed in each process, so that sets have another order.
    printed = {
        subprocess.run(
            command, check=True, capture_output=True, timeout=120, env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        ).stdout
        for seed in ("1", "2")
    }

    assert len(printed) == 1
