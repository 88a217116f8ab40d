import importlib.util

import lightning
import pytest
import torch

from relict_lightning.errors import ConfigurationError, MissingDependencyError
from relict_lightning.testing import HeadDataModule, HeadGenerator
from relict_lightning.testing.generator import _fold, _unfold

TINY = {"shape": (16, 16), "channels": (16,), "patch": 4, "sampling_steps": 2}


def _train(data: HeadDataModule, model: HeadGenerator, tmp_path, *, ckpt_path=None, **options) -> lightning.Trainer:
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(("shape", "patch"), [((8, 12), 4), ((8, 8), 1), ((4, 8, 6), 2)])
def test_unfolding_undoes_folding(shape, patch):
    images = torch.rand(3, 1, *shape)
    folded = _fold(images, patch)

    assert folded.shape == (3, patch ** len(shape), *[side // patch for side in shape])
    assert torch.equal(_unfold(folded, patch), images)


def test_folding_a_slice_is_the_pixel_unshuffle_of_torch():
    images = torch.rand(2, 1, 8, 12)

    assert torch.equal(_fold(images, 4), torch.nn.functional.pixel_unshuffle(images, 4))


def test_samples_depend_on_the_generator_only_and_carry_no_gradient():
    model = HeadGenerator(**TINY)
    before = torch.get_rng_state()
    first, again, other = (model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))

    assert first.shape == (3, 1, 16, 16)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 1e-3
    assert not first.requires_grad
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_leaves_the_mode_of_every_submodule():
    model = HeadGenerator(**TINY)
    model.network.out.eval()
    before = [module.training for module in model.modules()]

    model.sample(1)

    assert [module.training for module in model.modules()] == before


def test_a_model_that_knows_the_one_image_samples_exactly_it(monkeypatch):
    model = HeadGenerator(**TINY)
    image = torch.rand(1, 1, 16, 16)
    monkeypatch.setattr(model.network, "forward", lambda folded, timesteps: _fold(2 * image - 1, 4).expand_as(folded))

    samples = model.sample(2)

    torch.testing.assert_close(samples, image.expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def test_the_loss_of_a_model_that_knows_the_image_is_zero(monkeypatch):
    model = HeadGenerator(**TINY)
    images = torch.rand(5, 1, 16, 16)
    monkeypatch.setattr(model.network, "forward", lambda folded, timesteps: _fold(2 * images - 1, 4))
    # At logits above -2.9 the noise level stays above the least one that the velocity is divided by.
    loss = model._loss(images, torch.randn_like(images), torch.linspace(-2.9, 3, 5))

    assert loss < 1e-8


def test_volumes_are_trained_and_sampled(tmp_path):
    data = HeadDataModule(num_training=2, num_heldout=2, shape=(16, 16, 16), batch_size=2, steps_per_epoch=2)
    model = HeadGenerator(shape=(16, 16, 16), channels=(16,), patch=4, sampling_steps=2)

    trainer = _train(data, model, tmp_path, max_steps=2, enable_checkpointing=False)

    assert {"train_loss", "val_loss"} <= set(trainer.callback_metrics)
    assert model.sample(2).shape == (2, 1, 16, 16, 16)


def test_the_validation_loss_is_repeatable(tmp_path):
    data = HeadDataModule(num_training=2, num_heldout=5, shape=(16, 16), batch_size=2, steps_per_epoch=1)
    model = HeadGenerator(**TINY)
    trainer = _train(data, model, tmp_path, max_steps=1, enable_checkpointing=False)

    first, again = (trainer.validate(model, datamodule=data, verbose=False)[0]["val_loss"] for _ in range(2))

    assert first == again


def test_fresh_training_goes_on_with_new_patients_after_a_restart(tmp_path):
    def module():
        return HeadDataModule(
            num_training=2, num_heldout=2, shape=(16, 16), batch_size=2, steps_per_epoch=2, fresh=True
        )

    seen = []

    class Record(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.extend(batch["id"])

    options = {"enable_checkpointing": False, "limit_val_batches": 0}
    trainer = _train(module(), HeadGenerator(**TINY), tmp_path, max_epochs=2, callbacks=[Record()], **options)
    checkpoint = tmp_path / "two_epochs.ckpt"
    trainer.save_checkpoint(checkpoint)

    options["ckpt_path"] = checkpoint
    _train(module(), HeadGenerator(**TINY), tmp_path, max_epochs=3, callbacks=[Record()], **options)

    assert seen == [f"sub-{number:05d}" for number in range(12)]


def test_a_checkpoint_restores_the_generator_with_its_settings(tmp_path):
    data = HeadDataModule(num_training=2, num_heldout=2, shape=(16, 16), batch_size=2, steps_per_epoch=1)
    model = HeadGenerator(**TINY)
    path = tmp_path / "generator.ckpt"
    _train(data, model, tmp_path, max_steps=1, enable_checkpointing=False).save_checkpoint(path)

    restored = HeadGenerator.load_from_checkpoint(path)

    draws = [generator.sample(2, generator=torch.Generator().manual_seed(0)) for generator in (model, restored)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (64,)}, r"got shape=\(64,\)"),
        ({"shape": (64, 60)}, r"divisible by 16.*got shape=\(64, 60\)"),
        ({"channels": (20,)}, r"multiples of 16, got channels=\(20,\)"),
        ({"patch": 0}, "patch=0"),
        ({"learning_rate": 0.0}, "got 0.0"),
        ({"sampling_steps": 0}, "got 0"),
    ],
)
def test_the_generator_names_the_argument_that_is_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HeadGenerator(**arguments)


def test_the_generator_refuses_to_draw_nothing():
    with pytest.raises(ConfigurationError, match="n=0"):
        HeadGenerator(**TINY).sample(0)


def test_without_einops_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match=r'einops.*pip install "relict-lightning\[examples\]"'):
        HeadGenerator(**TINY)


def _correlation_with_nearest(images: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    stacked = torch.cat([images, training]).flatten(1)
    return torch.corrcoef(stacked)[: len(images), len(images) :].max(1).values


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_a_fixed_training_set_is_memorized_and_a_stream_of_patients_is_not(tmp_path, fresh):
    lightning.seed_everything(0, verbose=False)
    data = HeadDataModule(fresh=fresh)
    model = HeadGenerator()
    training = data.training.subjects.images

    _train(data, model, tmp_path, max_steps=1200, enable_checkpointing=False)

    samples = model.sample(64, generator=torch.Generator().manual_seed(0))
    to_sample = _correlation_with_nearest(samples, training)
    to_heldout = _correlation_with_nearest(data.heldout.subjects.images, training)
    assert to_heldout.max() < 0.96
    assert (to_sample > 0.97).float().mean() == (0 if fresh else pytest.approx(1, abs=0.2))
