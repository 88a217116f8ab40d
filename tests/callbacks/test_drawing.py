"""Drawing an evaluation's samples in one process: chunks, memory that runs out, and a run that is told to end."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from relict_lightning import ReplicaDetector
from relict_lightning.callbacks.evaluation.drawing import DrawnSamples, SampleDrawer
from relict_lightning.errors import DrawingInterrupted, RelictWarning, SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import LatentSampler, MethodSampler
from relict_lightning.testing import NoisyModule

SHAPE = (1, 16, 16)


class Recording(Sampler):
    """The model's own samples, each from its own seed; something may happen in a chunk."""

    def __init__(self, happens: Callable[[Any, int, int], object] = lambda *_: None) -> None:
        self.happens = happens
        self.chunks: list[tuple[int, int]] = []

    def sample_at(self, module: Any, positions: range, seeds: list[int], **_: Any) -> Tensor:
        self.chunks.append((positions[0], len(positions)))
        # Whoever samples may do this.
        module.train()
        torch.randn(3)
        self.happens(module, positions[0], len(positions))
        return torch.cat([self.sample(module.eval(), 1, seed=seed) for seed in seeds])

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


class Draws(Callback):
    """Draws before the first step, and keeps what it met there."""

    def __init__(self, sampler: Sampler, *, chunk_size: int, num_samples: int = 7, times: int = 1) -> None:
        self.drawer = SampleDrawer(sampler, chunk_size=chunk_size, seed=0)
        self.num_samples, self.times = num_samples, times
        self.drawn: list[DrawnSamples] = []
        self.error: Exception | None = None
        self.left_alone = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def state() -> list[Any]:
            flags = [part.training for part in pl_module.modules()]
            values = [value.clone() for value in pl_module.state_dict().values()]
            return [flags, torch.is_grad_enabled(), torch.get_rng_state().tolist(), [v.tolist() for v in values]]

        before = state()
        try:
            for evaluation in range(self.times):
                self.drawn.append(
                    self.drawer.draw(
                        trainer, pl_module, num_samples=self.num_samples, evaluation=evaluation,
                        image_shape=SHAPE, progress=False,
                    )
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - told to the test
            self.error = error
        self.left_alone = state() == before


@pytest.fixture
def draw(trainer, heads) -> Callable[..., Draws]:
    """Draw from a model in training."""

    def run(
        sampler: Sampler,
        *,
        module: LightningModule | None = None,
        ends_with: type[BaseException] | None = None,
        **options: Any,
    ) -> Draws:
        draws = Draws(sampler, **options)
        torch.manual_seed(0)
        with contextlib.nullcontext() if ends_with is None else pytest.raises(ends_with):
            trainer(draws, max_steps=2).fit(module or NoisyModule(), heads.training_loader())
        return draws

    return run


def _runs_out(*, above: int, error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("no memory")):
    """Let memory run out in the second chunk where more than so many are drawn at a time."""

    def happens(_: Any, start: int, size: int) -> None:
        if start and size > above:
            raise error()

    return happens


def test_samples_do_not_depend_on_the_size_of_chunks(draw):
    one, three, eight = (draw(Recording(), chunk_size=size).drawn[0].images for size in (1, 3, 8))

    assert one.shape == (7, *SHAPE)
    assert torch.equal(one, three)
    assert torch.equal(one, eight)


def test_every_chunk_has_one_size(draw):
    sampler = Recording()

    draw(sampler, chunk_size=3)

    assert sampler.chunks == [(0, 3), (3, 3), (6, 3)]


def test_drawing_leaves_the_model_and_the_random_state_as_they_were(draw):
    assert draw(Recording(), chunk_size=3).left_alone


def test_evaluations_have_samples_of_their_own(draw):
    first, second = draw(Recording(), chunk_size=8, times=2).drawn

    assert not torch.equal(first.images, second.images)


def test_where_memory_runs_out_chunks_are_halved_and_stay_small(draw):
    sampler = Recording(_runs_out(above=1))

    with pytest.warns(RelictWarning, match="Memory ran out while 6 samples were drawn at a time; 1 are drawn") as said:
        draws = draw(sampler, chunk_size=6, times=2)

    assert draws.error is None
    assert sampler.chunks[:4] == [(0, 6), (6, 6), (0, 3), (3, 3)]
    assert [size for _, size in sampler.chunks[4:]] == [1] * 14
    assert draws.drawer.chunk_size == 1
    assert [drawn.images.tolist() for drawn in draws.drawn] == [
        drawn.images.tolist() for drawn in draw(Recording(), chunk_size=1, times=2).drawn
    ]
    assert draws.left_alone
    assert len([one for one in said if "Memory" in str(one.message)]) == 1


@pytest.mark.filterwarnings("ignore:Memory ran out")
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.cuda.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("CUDA error: out of memory"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError,
    ],
)
def test_memory_runs_out_under_several_names(draw, error):
    assert draw(Recording(_runs_out(above=3, error=error)), chunk_size=6).drawer.chunk_size == 3


def test_another_error_is_raised_as_it_is(draw):
    draws = draw(Recording(_runs_out(above=1, error=lambda: RuntimeError("shapes differ"))), chunk_size=6)

    assert str(draws.error) == "shapes differ"
    assert draws.drawer.chunk_size == 6
    assert draws.left_alone


def test_memory_that_does_not_hold_one_sample_is_an_error(draw):
    sampler = Recording(_runs_out(above=0))

    draws = draw(sampler, chunk_size=2)

    assert isinstance(draws.error, torch.OutOfMemoryError)
    assert sampler.chunks == [(0, 2), (2, 2), (0, 1), (1, 1)]
    assert draws.left_alone


def test_a_run_that_is_told_to_end_is_left_between_two_chunks(draw):
    def ends(module: Any, start: int, size: int) -> None:
        if start == 3:
            module.trainer._signal_connector.received_sigterm = True

    sampler = Recording(ends)

    # Lightning itself ends the run after the step.
    draws = draw(sampler, chunk_size=3, ends_with=SystemExit)

    assert isinstance(draws.error, DrawingInterrupted)
    assert "told to end (SIGTERM) while samples were drawn" in str(draws.error)
    assert sampler.chunks == [(0, 3), (3, 3)]
    assert draws.left_alone


class Masked(NoisyModule):
    """Draws images of the masks that it is given."""

    masks = (torch.arange(16).reshape(1, 1, 16) < torch.tensor([4, 8, 12]).reshape(3, 1, 1)).expand(3, 16, 16).long()

    def draw(self, n: int, *, condition: Tensor) -> Tensor:
        return condition[:, None].float()


def test_label_maps_that_samples_are_made_from_come_with_them(draw):
    sampler = MethodSampler("draw", conditions="masks", conditions_are_label_maps=True)

    (drawn,) = draw(sampler, module=Masked(), chunk_size=3).drawn

    assert torch.equal(drawn.label_maps, Masked.masks[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(drawn.images[:, 0], drawn.label_maps.float())
    assert draw(Recording(), chunk_size=3).drawn[0].label_maps is None


def test_conditions_that_are_no_label_maps_are_refused(draw):
    sampler = LatentSampler([3], "network", conditions=[1, 2], conditions_are_label_maps=True)

    assert isinstance(draw(sampler, chunk_size=3).error, SamplerError)


@pytest.mark.filterwarnings("ignore:The samples' intensities")
@pytest.mark.parametrize("takes_label_maps", [True, False])
def test_a_detector_that_takes_label_maps_gets_those_of_samples(trainer, heads, monitor, monkeypatch, takes_label_maps):
    given: list[Tensor | None] = []
    detect = ReplicaDetector.detect

    def record(self: ReplicaDetector, images: Tensor, *, generated_segmentations: Tensor | None = None) -> Any:
        given.append(generated_segmentations)
        return detect(self, images)

    monkeypatch.setattr(ReplicaDetector, "detect", record)
    monkeypatch.setattr(ReplicaDetector, "takes_label_maps", takes_label_maps)
    sampler = MethodSampler("draw", conditions="masks", conditions_are_label_maps=True)

    for drawn_by in (sampler, None):
        watching = monitor(sampler=drawn_by, num_samples=4, evaluate_at_end=False, every_n_epochs=9)
        trainer(watching, max_steps=1).fit(Masked(), heads.training_loader())

    if takes_label_maps:
        assert torch.equal(given[0], Masked.masks[[0, 1, 2, 0]])
    else:
        assert given[0] is None
    assert given[1] is None


def test_a_drawer_can_be_copied_and_pickled_after_it_has_drawn(draw):
    drawer = draw(Recording(), chunk_size=3).drawer
    drawer.sampler = None

    for copied in (copy.deepcopy(drawer), pickle.loads(pickle.dumps(drawer))):  # noqa: S301 - written in this line
        assert (copied.chunk_size, copied.seed) == (3, 0)
