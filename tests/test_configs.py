import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from omegaconf import OmegaConf

import relict_lightning.callbacks.monitor
from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.callbacks import ReduceLearningRate
from relict_lightning.demo import run_demo
from relict_lightning.samplers import DiffusionSampler, MethodSampler, resolve_sampler

ROOT = Path(__file__).parents[1]
TINY = [
    "--trainer.max_steps=1",
    "--data.init_args.num_training=6",
    "--data.init_args.num_heldout=20",
    "--data.init_args.steps_per_epoch=1",
    "--data.init_args.shape=[32,32]",
    "--model.init_args.shape=[32,32]",
    "--model.init_args.channels=[16]",
    "--model.init_args.sampling_steps=2",
]


def draw_zeros(module: torch.nn.Module, n: int) -> torch.Tensor:
    """A sampling function, to be named in a configuration."""
    return torch.zeros(n, 1, 32, 32)


def _configured(tmp_path: Path, callbacks: list[dict[str, object]]) -> list[object]:
    """Return the callbacks that LightningCLI makes of a file, without running anything."""
    config = {
        "model": {"class_path": "relict_lightning.testing.NoisyModule"},
        "trainer": {"logger": False, "callbacks": callbacks},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        # LightningCLI itself calls what jsonargparse has deprecated.
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        cli = LightningCLI(
            run=False, args=["--config", str(path)], save_config_callback=None, seed_everything_default=False
        )
    # In the order of the file: the trainer puts what saves checkpoints last.
    names = [str(callback["class_path"]).rpartition(".")[2] for callback in callbacks]
    ours = [one for one in cli.trainer.callbacks if type(one).__name__ in names]
    return sorted(ours, key=lambda one: names.index(type(one).__name__))


def _configured_monitor(tmp_path: Path, **init_args: object) -> ReplicaMonitor:
    """Return the monitor that LightningCLI makes of a file."""
    monitor = {"class_path": "relict_lightning.ReplicaMonitor", "init_args": init_args}
    return _configured(tmp_path, [monitor])[0]


@pytest.mark.parametrize("name", ["demo", "fresh"])
def test_a_configuration_runs_as_it_stands_but_for_its_size(name, tmp_path):
    command = [sys.executable, ROOT / "examples" / "train.py", "fit", "--config", ROOT / "configs" / f"{name}.yaml"]

    finished = subprocess.run([*command, *TINY], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert finished.returncode == 0, finished.stderr
    assert "No memorization onset in 2 evaluations; last replica rate 0/128" in finished.stdout + finished.stderr
    assert (tmp_path / f"relict_{name}" / "report.html").exists()
    assert list((tmp_path / f"relict_{name}" / "checkpoints").glob("step=*.ckpt"))


def test_the_configurations_differ_in_where_they_write_and_in_fresh_subjects_only():
    demo, fresh = ((ROOT / "configs" / f"{name}.yaml").read_text() for name in ("demo", "fresh"))

    changed = yaml.safe_load(demo.replace("relict_demo", "relict_fresh"))
    changed["data"]["init_args"]["fresh"] = True
    assert yaml.safe_load(fresh) == changed


def test_the_configuration_has_the_settings_of_the_demo():
    defaults = {name: parameter.default for name, parameter in inspect.signature(run_demo).parameters.items()}
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())

    data, monitor = config["data"]["init_args"], config["trainer"]["callbacks"][0]["init_args"]
    assert {name: data[name] for name in ("num_training", "num_heldout", "steps_per_epoch", "seed")} == {
        name: defaults[name] for name in ("num_training", "num_heldout", "steps_per_epoch", "seed")
    }
    assert (monitor["num_samples"], config["trainer"]["max_steps"]) == (defaults["num_samples"], defaults["max_steps"])


def test_detector_encoder_segmenter_and_paths_can_be_set_in_a_file(tmp_path):
    detector = {
        "class_path": "relict_lightning.ReplicaDetector",
        "init_args": {
            "encoder": {"class_path": "relict_lightning.encoders.GradientEncoder", "init_args": {"cells": 4}},
            "segmenter": {
                "class_path": "relict_lightning.segmenters.IntensitySegmenter",
                "init_args": {"num_labels": 3},
            },
            "top_k": 3,
            "fdr": 0.1,
            "transforms": "none",
            "cache_dir": str(tmp_path / "cache"),
        },
    }

    monitor = _configured_monitor(tmp_path, detector=detector, report_path=str(tmp_path / "r.html"), every_n_steps=7)

    assert isinstance(monitor.detector, ReplicaDetector)
    assert (monitor.detector.top_k, monitor.detector.fdr, monitor.detector.transforms) == (3, 0.1, "none")
    assert monitor.detector.cache_dir == tmp_path / "cache"
    assert monitor.report_path == tmp_path / "r.html"
    assert str(monitor.schedule) == "every 7 steps"


def test_none_is_a_value_in_a_file(tmp_path):
    monitor = _configured_monitor(tmp_path, detector=None, sampler=None, training=None, heldout=None, cache_dir=None)

    assert (monitor.detector, monitor.training, monitor.heldout, monitor.cache_dir) == (None, None, None, None)


@pytest.fixture
def given_samplers(monkeypatch) -> list[object]:
    """Record what monitors are given as their sampler."""
    given: list[object] = []

    def resolve(sampler: object) -> object:
        given.append(sampler)
        return resolve_sampler(sampler)

    monkeypatch.setattr(relict_lightning.callbacks.monitor, "resolve_sampler", resolve)
    return given


def test_a_sampler_in_a_file_is_a_class_a_function_or_the_name_of_a_method(tmp_path, given_samplers, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    by_class = {
        "class_path": "relict_lightning.samplers.MethodSampler",
        "init_args": {"method": "generate", "arguments": {"steps": 3}},
    }

    for sampler in (by_class, "test_configs.draw_zeros", "generate"):
        _configured_monitor(tmp_path, sampler=sampler)

    by_class_given, function, name = given_samplers
    assert isinstance(by_class_given, MethodSampler)
    assert (by_class_given.method, by_class_given.arguments) == ("generate", {"steps": 3})
    assert callable(function)
    assert function.__name__ == "draw_zeros"
    assert name == "generate"


def test_ready_samplers_can_be_set_in_a_file_with_their_parts_and_schedulers(tmp_path, given_samplers):
    ready = [
        ("PredictStepSampler", {"conditions": "labels"}),
        (
            "DiffusionSampler",
            {
                "network": "unet",
                "scheduler": {
                    "class_path": "monai.networks.schedulers.DDIMScheduler",
                    "init_args": {"num_train_timesteps": 30},
                },
                "num_inference_steps": 3,
                "image_shape": [1, 16, 16],
                "conditions": [0, 1],
                "mode": "class_labels",
                "network_arguments": {"spacing_tensor": [1.0, 1.0, 1.5]},
            },
        ),
        ("LatentDiffusionSampler", {"latent_shape": [3, 4, 4], "autoencoder": "vae", "scale_factor": "scale"}),
        ("LatentSampler", {"latent_shape": [8], "network": "vae.decode"}),
        ("PipelineSampler", {"arguments": {"output_type": "np"}, "intensity_range": [-1, 1]}),
    ]

    for name, init_args in ready:
        _configured_monitor(
            tmp_path, sampler={"class_path": f"relict_lightning.samplers.{name}", "init_args": init_args}
        )

    assert [type(sampler).__name__ for sampler in given_samplers] == [name for name, _ in ready]
    step, diffusion, latents, gan, pipeline = given_samplers
    assert step.conditions.given == "labels"
    assert diffusion.scheduler.num_train_timesteps == 30
    assert (diffusion.image_shape, diffusion.conditions.given) == ((1, 16, 16), [0, 1])
    assert diffusion.network_arguments == {"spacing_tensor": [1.0, 1.0, 1.5]}
    assert (latents.latent_shape, latents.scale_factor) == ((3, 4, 4), "scale")
    assert (gan.latent_shape, gan.network) == ((8,), "vae.decode")
    assert pipeline.intensity_range == (-1.0, 1.0)


def _instantiate(config: object) -> object:
    """Make objects of `_target_` dictionaries as Hydra does: nested ones first, other containers as they are."""
    if not OmegaConf.is_dict(config) or "_target_" not in config:
        return config
    module, _, name = config["_target_"].rpartition(".")
    arguments = {key: _instantiate(config[key]) for key in config if key != "_target_"}
    return getattr(__import__(module, fromlist=[name]), name)(**arguments)


def test_callbacks_can_be_made_of_omegaconf_containers():
    config = OmegaConf.create(
        {
            "monitor": {
                "_target_": "relict_lightning.ReplicaMonitor",
                "detector": {
                    "_target_": "relict_lightning.ReplicaDetector",
                    "encoder": {"_target_": "relict_lightning.encoders.GradientEncoder", "cells": 4},
                    "top_k": 3,
                },
                "sampler": {
                    "_target_": "relict_lightning.samplers.DiffusionSampler",
                    "network": "unet",
                    "image_shape": [1, 16, 16],
                    "conditions": [0, 1],
                },
                "num_samples": 8,
                "at_steps": [500, 2000],
                "max_overhead": 0.05,
                "patience": 2,
                "training": "training",
            },
            "stopping": {"_target_": "relict_lightning.MemorizationStopping"},
            "keeper": {
                "_target_": "relict_lightning.MemorizationCheckpoint",
                "dirpath": "kept",
                "keep": 2,
                "restore": True,
            },
            "reducing": {"_target_": "relict_lightning.callbacks.ReduceLearningRate", "factor": 0.5},
        }
    )

    monitor, stopping, keeper, reducing = (_instantiate(config[name]) for name in config)

    assert isinstance(monitor, ReplicaMonitor)
    assert monitor.detector.top_k == 3
    assert str(monitor.schedule) == "at steps 500, 2000"
    # What is saved with a run and loaded with weights only is a plain list.
    assert type(monitor.state_dict()["settings"]["at_steps"]) is list
    assert monitor._drawer.sampler.image_shape == (1, 16, 16)
    assert isinstance(stopping, MemorizationStopping)
    assert isinstance(keeper, MemorizationCheckpoint)
    assert (keeper.keep, keeper.restore) == (2, True)
    assert isinstance(reducing, ReduceLearningRate)


def test_a_list_of_files_from_omegaconf_is_a_training_set(tmp_path):
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    for position, image in enumerate(images):
        np.save(tmp_path / f"{position}.npy", image)
    files = OmegaConf.create([str(tmp_path / f"{position}.npy") for position in range(8)])

    result = ReplicaDetector().fit(files).detect(images[:3])

    assert [verdict.match for verdict in result.verdicts] == [0, 1, 2]


def test_every_schedule_and_action_can_be_set_in_a_file(tmp_path):
    def configured(*callbacks: dict[str, object]) -> list[object]:
        return _configured(tmp_path, list(callbacks))

    monitor = {
        "class_path": "relict_lightning.ReplicaMonitor",
        "init_args": {
            "sampler": {
                "class_path": "relict_lightning.samplers.DiffusionSampler",
                "init_args": {"network": "unet", "num_inference_steps": 3, "image_shape": [1, 16, 16]},
            },
            "every_n_minutes": 30,
            "adaptive": True,
            "max_overhead": 0.05,
            "on_error": "raise",
            "patience": 2,
            "name": "first",
        },
    }
    listed = {"class_path": "relict_lightning.ReplicaMonitor", "init_args": {"at_steps": [500, 2000], "name": "second"}}
    keeper = {
        "class_path": "relict_lightning.MemorizationCheckpoint",
        "init_args": {"dirpath": "kept", "keep": 2, "verify": False, "restore": True},
    }
    reducing = {"class_path": "relict_lightning.callbacks.ReduceLearningRate", "init_args": {"factor": 0.5}}
    stopping = {"class_path": "relict_lightning.MemorizationStopping", "init_args": {"verbose": False}}

    by_minutes, by_list, kept, reduces, stops = configured(monitor, listed, keeper, reducing, stopping)

    assert str(by_minutes.schedule) == "every 30 minutes, up to 8 times as rarely while nothing happens"
    assert (by_minutes.max_overhead, by_minutes.on_error, by_minutes.patience) == (0.05, "raise", 2)
    assert isinstance(by_minutes._drawer.sampler, DiffusionSampler)
    assert str(by_list.schedule) == "at steps 500, 2000"
    assert (kept.keep, kept.verify, kept.restore) == (2, False, True)
    assert reduces.factor == 0.5
    assert isinstance(stops, MemorizationStopping)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("patience", "often"), ("at_steps", [500, "last"]), ("adaptive", "when quiet")],
)
def test_a_file_with_a_value_of_the_wrong_kind_is_refused(tmp_path, argument, value):
    with pytest.raises(SystemExit):
        _configured_monitor(tmp_path, **{argument: value})


def test_a_file_with_a_value_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(ValueError, match=r"on_error must be 'warn' or 'raise', got 'ignore'"):
        _configured_monitor(tmp_path, on_error="ignore")
