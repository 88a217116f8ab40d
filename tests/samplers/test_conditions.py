from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.utils.data import TensorDataset

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers.conditions import Conditions


class Conditioned(nn.Module):
    labels = torch.tensor([7, 8, 9])


def _at(given, positions, module=None, **options):
    return Conditions(given, of="Sampler").at(module or Conditioned(), positions, **options)


@pytest.mark.parametrize(
    "given",
    [torch.tensor([0, 1, 2]), np.array([0, 1, 2]), [0, 1, 2], (0, 1, 2), [torch.tensor(label) for label in range(3)]],
    ids=["tensor", "array", "list", "tuple", "tensors"],
)
def test_conditions_are_cycled_by_position(given):
    assert _at(given, range(2, 9)).tolist() == [2, 0, 1, 2, 0, 1, 2]


def test_no_conditions_are_none():
    assert _at(None, range(3)) is None


def test_a_name_is_that_of_the_module():
    assert _at("labels", [0, 4]).tolist() == [7, 8]


def test_a_name_is_that_of_the_datamodule_first():
    module = Conditioned()
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(labels=[1, 2]))

    assert _at("labels", [0, 3], module).tolist() == [1, 2]


def test_dots_lead_into_parts():
    module = Conditioned()
    module.part = Conditioned()

    assert _at("part.labels", [1], module).tolist() == [8]


def test_texts_are_a_list():
    assert _at(["old", "young"], [1, 2]) == ["young", "old"]


def test_dictionaries_and_tuples_are_batched_part_by_part():
    conditions = [{"age": float(age), "mask": torch.full((2, 2), age)} for age in range(3)]

    batch = _at(conditions, [2, 3])

    assert batch["age"].tolist() == [2.0, 0.0]
    assert batch["age"].dtype == torch.float32
    assert batch["mask"].shape == (2, 2, 2)
    assert [part.tolist() for part in _at(TensorDataset(torch.arange(3), torch.arange(3) * 2), [1, 2])] == [
        [1, 2],
        [2, 4],
    ]


def test_tensors_are_plain_and_of_the_type_asked_for():
    conditions = MetaTensor(torch.ones(3, 2), meta={"filename_or_obj": "/patients/anna.nii.gz"})

    batch = _at(conditions, [0, 1], dtype=torch.bfloat16)

    assert type(batch) is torch.Tensor
    assert batch.dtype == torch.bfloat16
    assert _at([1, 2], [0], dtype=torch.bfloat16).dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(0, 3), r"conditions of Sampler are empty"),
        ([], r"conditions of Sampler are empty"),
        (3, r"must be a tensor \[m, \.\.\.\] or a sequence; got int"),
    ],
)
def test_conditions_without_any_are_refused_at_once(given, message):
    with pytest.raises(ConfigurationError, match=message):
        Conditions(given, of="Sampler")


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(
        SamplerError, match=r"Sampler\(conditions=\.\.\.\) names the attribute 'masks' .*this run has no datamodule"
    ):
        _at("masks", [0])


def test_a_name_that_the_datamodule_does_not_have_either_is_refused():
    module = Conditioned()
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace())

    with pytest.raises(SamplerError, match=r"Conditioned has none of that name, nor has SimpleNamespace"):
        _at("masks", [0], module)


def test_conditions_of_several_shapes_are_refused():
    with pytest.raises(SamplerError, match=r"cannot be put into one batch.*Pass tensors of one shape"):
        _at([torch.zeros(2), torch.zeros(3)], [0, 1])
