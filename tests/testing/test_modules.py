import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError
from relict_lightning.testing import CopyingModule, NoisyModule


def _trainer(tmp_path, *, max_steps: int, callbacks=()) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=tmp_path,
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def _loader() -> DataLoader:
    images = torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    return DataLoader(images, batch_size=4)


def _copying(**options) -> CopyingModule:
    training = 1 + torch.arange(4.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    fresh = -1 - torch.arange(50.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return CopyingModule(training, fresh, **options)


class _Look(lightning.Callback):
    """Looks at the model in the careless way that `NoisyModule` is there to catch."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.sample(2)


class _ModeLook(lightning.Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            pl_module.sample(2, generator=torch.Generator().manual_seed(0))


def _weights_after_training(tmp_path, *callbacks) -> torch.Tensor:
    torch.manual_seed(0)
    module = NoisyModule((8, 8))
    _trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(module, _loader(), _loader())
    return torch.cat([value.float().flatten() for value in module.state_dict().values()])


def test_training_the_noisy_module_twice_gives_the_same_weights(tmp_path):
    assert torch.equal(_weights_after_training(tmp_path), _weights_after_training(tmp_path))


@pytest.mark.parametrize("look", [_Look(), _ModeLook()])
def test_a_careless_look_changes_the_weights_of_the_noisy_module(tmp_path, look):
    assert not torch.equal(_weights_after_training(tmp_path), _weights_after_training(tmp_path, look))


@pytest.mark.parametrize("shape", [(8, 8), (4, 6, 8)])
def test_samples_of_the_noisy_module_depend_on_the_generator_only(shape):
    module = NoisyModule(shape, channels=2).eval()
    first, again, other = (module.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))

    assert first.shape == (3, 2, *shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("batch", ["tensor", "dictionary", "tuple"])
def test_both_modules_take_a_batch_in_every_usual_form(tmp_path, batch):
    images = torch.rand(4, 1, 8, 8)
    forms = {
        "tensor": list(images),
        "dictionary": [{"image": image, "id": "sub-00000"} for image in images],
        "tuple": [(image, 0) for image in images],
    }
    loader = DataLoader(forms[batch], batch_size=2)
    for module in (NoisyModule((8, 8)), _copying(schedule=[])):
        trainer = _trainer(tmp_path, max_steps=2)
        trainer.fit(module, loader, loader)

        assert {"train_loss", "val_loss"} <= set(trainer.callback_metrics)


def test_the_noisy_module_rejects_a_line():
    with pytest.raises(ConfigurationError, match=r"shape=\(8,\)"):
        NoisyModule((8,))
    with pytest.raises(ConfigurationError, match="channels=0"):
        NoisyModule((8, 8), channels=0)


def test_copies_begin_at_the_step_that_the_schedule_names(tmp_path):
    shares = {}

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            samples = pl_module.sample(40, generator=torch.Generator().manual_seed(0))
            shares[trainer.global_step] = float((samples[:, 0, 0, 0] > 0).float().mean())

    module = _copying(schedule=[(3, 0.5), (5, 1.0)])

    _trainer(tmp_path, max_steps=6, callbacks=[Watch()]).fit(module, _loader(), _loader())

    assert shares[1] == shares[2] == 0
    assert 0.2 < shares[3] == shares[4] < 0.8
    assert shares[5] == shares[6] == 1


def test_the_copying_module_trains_its_weight(tmp_path):
    module = _copying(schedule=[])

    _trainer(tmp_path, max_steps=4).fit(module, _loader(), _loader())

    assert module.weight.item() > 0.1


def test_no_fresh_image_comes_twice_before_all_came_once():
    samples = _copying(schedule=[]).sample(50, generator=torch.Generator().manual_seed(0))

    assert len(samples[:, 0, 0, 0].unique()) == 50


def test_samples_of_the_copying_module_depend_on_the_generator_only():
    module = _copying(schedule=[(0, 0.5)], noise=0.1)
    first, again, other = (module.sample(20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_added_to_every_sample():
    module = _copying(schedule=[(0, 0.5)], noise=0.1)
    samples = module.sample(64, generator=torch.Generator().manual_seed(0))

    assert samples.var((1, 2, 3)).mean() == pytest.approx(0.01, rel=0.1)


def test_images_of_patients_are_not_in_the_state_of_the_copying_module():
    assert set(_copying(schedule=[]).state_dict()) == {"weight", "steps_taken"}


def test_with_earlier_weights_the_copying_module_copies_as_it_did_then(tmp_path):
    module, before = _copying(schedule=[(3, 1.0)]), {}

    class Remember(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            before.setdefault("weights", {name: value.clone() for name, value in pl_module.state_dict().items()})

    _trainer(tmp_path, max_steps=4, callbacks=[Remember()]).fit(module, _loader(), _loader())
    assert (module.sample(40) > 0).all()
    module.load_state_dict(before["weights"])

    assert (module.sample(40) < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": [(5, 0.1), (5, 0.2)]}, r"must rise, got \[5, 5\]"),
        ({"schedule": [(5, 1.1)]}, r"in \[0, 1\], got \[\(5, 1.1\)\]"),
        ({"schedule": [], "noise": -1.0}, "noise=-1.0"),
    ],
)
def test_the_copying_module_rejects_a_schedule_that_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        _copying(**options)


def test_the_copying_module_rejects_empty_and_mismatched_sets():
    with pytest.raises(EmptyDataError, match="got 0 and 3"):
        CopyingModule(torch.zeros(0, 1, 8, 8), torch.zeros(3, 1, 8, 8), schedule=[])
    with pytest.raises(InvalidImageError, match=r"\[1, 8, 8\] and \[1, 4, 4\]"):
        CopyingModule(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 4, 4), schedule=[])
