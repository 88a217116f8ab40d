"""The monitor: looks at the generator while it trains, and leaves training as if nothing had looked."""

import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from relict_lightning.callbacks.agreement import on_first, together
from relict_lightning.callbacks.drawing import SampleDrawer
from relict_lightning.callbacks.kept import KeptCheckpoint
from relict_lightning.callbacks.preparation import describe_power, fit_detector
from relict_lightning.callbacks.reporting import onset_summary
from relict_lightning.callbacks.schedule import Schedule
from relict_lightning.callbacks.sources import heldout_source, load_validation, training_source
from relict_lightning.data import random_state_kept
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.interfaces import Sampler
from relict_lightning.onset import Onset, OnsetDetector, rate_to_primitives
from relict_lightning.report import write_report
from relict_lightning.results import DetectionResult, Evaluation, MatchedPair, RateEstimate
from relict_lightning.samplers import resolve_sampler
from relict_lightning.tracking import logged_values, with_prefix, write_pairs, write_scalars

_CHUNK = 32
_TINY = 4
_PAIRS_KEPT = 8
_FRESH = 2**32
# The arguments on which evaluations depend: a run that is resumed with others goes on, and says so.
_SETTINGS = ("name", "num_samples", "every_n_epochs", "every_n_steps", "alpha", "tolerance", "seed")


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was found of the samples of one evaluation, and how long it took."""

    result: DetectionResult
    pairs: list[MatchedPair]
    seconds_sampling: float
    seconds_checking: float


class ReplicaMonitor(Callback):
    """Samples from the model while it trains, and logs how many of the samples are replicas of training images.

    At the start, then every so many epochs or steps, it draws samples with its own seeds, looks them up in an index of
    the training images, judges them against held-out patients, and logs the numbers under `relict/`. Weights, random
    states, modes and the order of data are left as if nothing had looked. `MemorizationStopping` and
    `MemorizationCheckpoint` act on what it finds.

    Each `fit` is a run of its own, with its own history, onset and `alpha` to spend; only `fit(ckpt_path=...)` goes on
    with those of the run that it resumes. Of several monitors in one trainer all but one need a `name` each.

    Args:
        detector: The detector; fitted here, anew for each run, unless it was fitted before. None makes one with the
            defaults.
        sampler: Where samples come from: a `Sampler`, a function of (module, n), or the name of a method of the
            module. None calls `module.sample(n)`, with a `generator` where it takes one.
        num_samples: Samples per evaluation.
        every_n_epochs: Epochs between evaluations. Where the trainer validates, evaluations wait for the next
            validation, so that other callbacks read them in time.
        every_n_steps: Optimizer steps between evaluations; when given, epochs do not count.
        training: Training images: whatever `ReplicaDetector.fit` takes, or the name of an attribute of the
            datamodule. None takes the data set of the training dataloader.
        heldout: Images of other patients, in the same forms. None takes the data set of the validation dataloader.
        alpha: Bound on the probability of a false alarm over the whole run.
        tolerance: Replica rate that is put up with.
        evaluate_at_start: Whether to evaluate before the first step.
        evaluate_at_end: Whether to evaluate the final weights where the last evaluation saw earlier ones.
        sample_batch_size: Samples drawn at a time, the same each time; None draws up to 32.
        cache_dir: Where the index is kept and found again; None takes `relict_cache` in the trainer's
            `default_root_dir`. It holds patient data and stays on this machine. Not used with a `detector`.
        seed: Seed of all sampling.
        log_images: Whether pictures of matched pairs, which show patients, are sent to the loggers.
        report_path: Where to write the HTML report, which shows patients, when training ends; None writes none.
        progress: Whether to show progress bars; None follows the trainer's.
        name: What tells this monitor from others in the same trainer, of letters, digits, `_`, `.` and `-`; its numbers
            are logged under `relict/<name>/`.

    Raises:
        ConfigurationError: If a number lies outside its range, or `name` has other characters.

    Attributes:
        history: Every evaluation so far.
        onset: When memorization was established, None while it is not.
        last_result: What the detector found at the last evaluation.
        last_pairs: The samples most like a copy at the last evaluation, with their matches.
        rollback: The checkpoint to go back to, once `MemorizationCheckpoint` has named one.
        evaluated_now: Whether the newest training step was evaluated.
    """

    def __init__(
        self,
        detector: ReplicaDetector | None = None,
        *,
        sampler: Sampler | Callable[..., Tensor] | str | None = None,
        num_samples: int = 64,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        training: Any | None = None,
        heldout: Any | None = None,
        alpha: float = 0.05,
        tolerance: float = 0.01,
        evaluate_at_start: bool = True,
        evaluate_at_end: bool = True,
        sample_batch_size: int | None = None,
        cache_dir: str | Path | None = None,
        seed: int = 0,
        log_images: bool = False,
        report_path: str | Path | None = None,
        progress: bool | None = None,
        name: str = "",
    ) -> None:
        if num_samples < 2:
            raise ConfigurationError(f"num_samples must be at least 2, got {num_samples}.")
        if sample_batch_size is not None and sample_batch_size < 1:
            raise ConfigurationError(f"sample_batch_size must be at least 1, got {sample_batch_size}.")
        if not re.fullmatch(r"[A-Za-z0-9_.-]*", name):
            raise ConfigurationError(f"name may have only letters, digits, '_', '.' and '-', got {name!r}.")
        self.name = name
        self.detector = detector
        self._detector_is_own = False
        self._fits_detector = False
        size = sample_batch_size or min(num_samples, _CHUNK)
        self._drawer = SampleDrawer(resolve_sampler(sampler), chunk_size=size, seed=seed)
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.alpha = alpha
        self.tolerance = tolerance
        self.training = training
        self.heldout = heldout
        self.evaluate_at_start = evaluate_at_start
        self.evaluate_at_end = evaluate_at_end
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.seed = seed
        self.log_images = log_images
        self.report_path = None if report_path is None else Path(report_path)
        self.progress = progress
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget all that belongs to one run."""
        self.schedule = Schedule(every_n_epochs=self.every_n_epochs, every_n_steps=self.every_n_steps)
        self._onset_detector = OnsetDetector(alpha=self.alpha, tolerance=self.tolerance)
        self.history: list[Evaluation] = []
        self.last_result: DetectionResult | None = None
        self.last_pairs: list[MatchedPair] = []
        self.rollback: KeptCheckpoint | None = None
        self.evaluated_now = False
        self._shown_in_epoch: int | None = None
        self._measured_again = 0

    @property
    def state_key(self) -> str:
        """A key of its own for each name: two monitors keep two histories, and a setting can change on resume."""
        return self._generate_state_key(name=self.name)

    @property
    def onset(self) -> Onset | None:
        """When memorization was established; None while it is not."""
        return self._onset_detector.onset

    # Hooks ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start a run afresh; the state of one that is resumed is loaded after this.

        Raises:
            ConfigurationError: If another monitor in the trainer has the same name.
        """
        if stage != TrainerFn.FITTING:
            return
        callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined] # set by the trainer's connector
        if any(
            isinstance(other, ReplicaMonitor) and other.name == self.name for other in callbacks if other is not self
        ):
            raise ConfigurationError(
                f"Two ReplicaMonitors of this trainer have the name {self.name!r}, so their numbers and their states "
                f"would be mixed up. Give one of them another, as `ReplicaMonitor(..., name=...)`."
            )
        self._start_afresh()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the reference, or find it in the cache, and evaluate once unless the run is resumed."""
        with random_state_kept():
            load_validation(trainer)
            self._prepare(trainer, pl_module)
        if self.evaluate_at_start and not self.history:
            values = self._evaluate(trainer, pl_module)
            # Not through the module's `log`: what is logged here would overwrite the first epoch's value at its end.
            self._write(trainer, values)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where a number of steps is due."""
        self.evaluated_now = False
        if not self.schedule.counts_steps or not self.schedule.due(trainer.global_step):
            return
        values = self._evaluate(trainer, pl_module)
        pl_module.log_dict(
            with_prefix({**values, "evaluated": 1.0}, monitor=self.name),
            on_step=True, on_epoch=False, logger=False, batch_size=1,
        )  # fmt: skip
        self._write(trainer, values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where an epoch is due and the trainer validates: early stopping reads the values right after."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._end_of_epoch(trainer, pl_module, completed=trainer.current_epoch + int(trainer.is_last_batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where an epoch is due and the trainer does not validate."""
        if not _validates(trainer):
            self._end_of_epoch(trainer, pl_module, completed=trainer.current_epoch + 1)
        elif self._shown_in_epoch != trainer.current_epoch and self.history:
            # An epoch without validation, or one that a resumed run finds finished.
            self._show(trainer, pl_module, dict(self.history[-1].measures), evaluated=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final weights if the last evaluation saw others, say how it ended, and write the report."""
        seen = self.history and self.history[-1].step == trainer.global_step
        if self.evaluate_at_end and not seen:
            self._write(trainer, self._evaluate(trainer, pl_module))
        last_rate = self.history[-1].replica_rate if self.history else None
        if self.onset is None and last_rate is not None:
            rank_zero_info(f"No memorization onset in {len(self.history)} evaluations; last replica rate {last_rate}.")
        if self.report_path is not None and self.history and not _is_dry_run(trainer):
            write = partial(self._write_report, self.report_path, model=type(pl_module).__name__)
            on_first(trainer, write, doing="Writing the report")

    def settings(self) -> dict[str, str]:
        """Return what the numbers of this run depend on, in words."""
        detector = self._fitted_detector
        return {
            "Training patients": str(detector.training_groups),
            "Held-out patients": str(detector.heldout_groups),
            "Samples per evaluation": str(self.num_samples),
            "Evaluations": str(self.schedule),
            "False discovery rate of the verdicts": f"{detector.fdr:g}",
            "Probability of a false alarm over the run": f"at most {self.alpha:g}",
            "Tolerated replica rate": f"{self.tolerance:g}",
            "Hits per view": str(detector.top_k),
            "Alterations searched": detector.transforms,
            "Seed of sampling": str(self.seed),
        }

    # Evaluation -------------------------------------------------------------------------------------------------

    def _end_of_epoch(self, trainer: Trainer, pl_module: LightningModule, *, completed: int) -> None:
        """Evaluate if it is due; log the new values, or the last ones again where other callbacks expect some."""
        due = not self.schedule.counts_steps and self.schedule.due(completed)
        if due:
            values = self._evaluate(trainer, pl_module)
        elif self.history:
            values = dict(self.history[-1].measures)
        else:
            return
        self._show(trainer, pl_module, values, evaluated=due)
        if due:
            self._write(trainer, values)

    def _write(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Write the values of an evaluation to the loggers."""
        write = partial(write_scalars, trainer.loggers, values, step=trainer.global_step, monitor=self.name)
        on_first(trainer, write, doing="Writing to the loggers")

    def _show(self, trainer: Trainer, pl_module: LightningModule, values: dict[str, float], *, evaluated: bool) -> None:
        """Show values to other callbacks: early stopping and checkpoints expect some at every epoch.

        The loggers are written to elsewhere, once for each evaluation, because Lightning refuses a name whose `logger`
        differs from one call to the next.
        """
        self._shown_in_epoch = trainer.current_epoch
        pl_module.log_dict(
            with_prefix({**values, "evaluated": float(evaluated)}, monitor=self.name),
            on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True,
        )  # fmt: skip

    def measure_again(self, trainer: Trainer, pl_module: LightningModule) -> DetectionResult:
        """Return what is found of newly drawn samples, which no evaluation has seen; nothing of it is recorded.

        All processes call this together, while the trainer fits.

        Args:
            trainer: The trainer.
            pl_module: The model to sample from, which is left as it was.

        Raises:
            SamplerError: If the samples are not what was asked for.
        """
        self._measured_again += 1
        # Evaluations count from 0, and none comes near this many.
        return self._measure(trainer, pl_module, evaluation=_FRESH + self._measured_again).result

    def _measure(self, trainer: Trainer, pl_module: LightningModule, *, evaluation: int) -> _Measured:
        """Draw samples with the seeds of an evaluation, and check them."""
        detector = self._fitted_detector
        started = time.perf_counter()
        samples = self._draw(trainer, pl_module, evaluation=evaluation)
        drawn = time.perf_counter()

        def check() -> tuple[DetectionResult, list[MatchedPair]]:
            with random_state_kept():
                result = detector.detect(samples)
                return result, detector.matched_pairs(samples, result, _most_alike(result))

        checking = "Checking the samples"
        # Processes that share the reference wait for each other while they check.
        share = partial(detector.processes.together, check, doing=checking)
        result, pairs = together(trainer, share, doing=checking)
        return _Measured(
            result=result,
            pairs=pairs,
            seconds_sampling=drawn - started,
            seconds_checking=time.perf_counter() - drawn,
        )

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Draw samples, check them, take the result into the history, and return the values to log."""
        step, epoch = trainer.global_step, trainer.current_epoch
        level = self._onset_detector.next_level
        measured = self._measure(trainer, pl_module, evaluation=len(self.history))
        result, pairs = measured.result, measured.pairs
        self.last_result, self.last_pairs = result, pairs
        newly = self._onset_detector.update(result, step=step, epoch=epoch)
        values = logged_values(
            result,
            onset=self.onset is not None,
            seconds_sampling=measured.seconds_sampling,
            seconds_checking=measured.seconds_checking,
        )
        context = {"alpha_threshold": level} if result.replica_rate is not None else {}
        if (loss := trainer.callback_metrics.get("train_loss")) is not None:
            context["train_loss"] = float(loss)
        self.history.append(
            Evaluation(step=step, epoch=epoch, replica_rate=result.replica_rate, measures=values, context=context)
        )
        self.evaluated_now = True
        if newly is not None:
            rank_zero_info(newly.reason)
        if self.log_images and not _is_dry_run(trainer):
            write = partial(write_pairs, trainer.loggers, pairs, step=step, monitor=self.name)
            on_first(trainer, write, doing="Writing pictures to the loggers")
        return values

    def _write_report(self, path: Path, *, model: str) -> None:
        """Write the report of the run, and say where it lies."""
        written = write_report(
            path,
            title=f"Replicas of training patients in {model}",
            evaluations=self.history,
            onset=onset_summary(self.onset, self.rollback),
            pairs=self.last_pairs,
            settings=self.settings(),
            self_test=self._fitted_detector.self_test_at_fit,
        )
        rank_zero_info(f"Report, a local file that shows patients: {written}.")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, *, evaluation: int) -> Tensor:
        """Return an evaluation's samples, the same on every rank."""
        return self._drawer.draw(
            trainer,
            pl_module,
            num_samples=min(self.num_samples, _TINY) if _is_dry_run(trainer) else self.num_samples,
            evaluation=evaluation,
            image_shape=self._fitted_detector.image_shape,
            progress=self._shows_progress(trainer) and trainer.is_global_zero,
        )

    # Preparation ------------------------------------------------------------------------------------------------

    @property
    def _fitted_detector(self) -> ReplicaDetector:
        if self.detector is None:
            raise ConfigurationError("ReplicaMonitor is used outside `Trainer.fit`; it has no reference yet.")
        return self.detector

    def _shows_progress(self, trainer: Trainer) -> bool:
        return trainer.progress_bar_callback is not None if self.progress is None else self.progress

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the detector and fit it, unless it was given fitted, and say what it can decide."""
        if self.detector is None or self._detector_is_own:
            self._detector_is_own = True
            cache_dir = self.cache_dir or Path(trainer.default_root_dir) / "relict_cache"
            self.detector = ReplicaDetector(cache_dir=cache_dir, progress=self._shows_progress(trainer))
        detector = self.detector.to(pl_module.device)
        # What was fitted here in an earlier run knows that run's patients.
        if self._fits_detector or not detector.is_fitted:
            self._fits_detector = True
            training = training_source(self.training, trainer)
            fit_detector(detector, trainer, training=training, heldout=heldout_source(self.heldout, trainer))
        describe_power(detector, self._onset_detector, num_samples=self.num_samples)

    # State ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return settings, schedule, history and onset as primitives, without anything of a patient."""
        return {
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "schedule": self.schedule.state_dict(),
            "onset": self._onset_detector.state_dict(),
            "history": [
                {
                    "step": evaluation.step,
                    "epoch": evaluation.epoch,
                    "replica_rate": None
                    if evaluation.replica_rate is None
                    else rate_to_primitives(evaluation.replica_rate),
                    "measures": dict(evaluation.measures),
                    "context": dict(evaluation.context),
                }
                for evaluation in self.history
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run: history, onset and spent alpha are taken over, and a changed setting is pointed out."""
        for name, saved in state_dict["settings"].items():
            now = getattr(self, name)
            if saved != now:
                warnings.warn(
                    f"ReplicaMonitor resumes a run that had {name}={saved!r} with {name}={now!r}. "
                    f"Evaluations from here on use the new value; what was decided before stays.",
                    RelictWarning,
                    stacklevel=2,
                )
        self.schedule.load_state_dict(state_dict["schedule"])
        self._onset_detector.load_state_dict(state_dict["onset"])
        self.history = [
            Evaluation(
                step=evaluation["step"],
                epoch=evaluation["epoch"],
                replica_rate=evaluation["replica_rate"] and RateEstimate(**evaluation["replica_rate"]),
                measures=evaluation["measures"],
                context=evaluation["context"],
            )
            for evaluation in state_dict["history"]
        ]


def _is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _validates(trainer: Trainer) -> bool:
    """Return whether the trainer runs a validation loop during this fit."""
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


def _most_alike(result: DetectionResult) -> list[int]:
    """Return the samples most like a copy, and of those that match one training image the best first."""

    def order(sample: int) -> tuple[bool, float]:
        verdict = result.verdicts[sample]
        alike = verdict.evidence["voxel"]["normalized_cross_correlation"]
        return not verdict.is_replica, -(alike if math.isnan(verdict.score) else verdict.score)

    ranked = sorted(range(len(result.verdicts)), key=order)
    best_of_match: dict[int, int] = {}
    for sample in ranked:
        best_of_match.setdefault(result.verdicts[sample].match, sample)
    first = set(best_of_match.values())
    return sorted(ranked, key=lambda sample: (not result.verdicts[sample].is_replica, sample not in first))[
        :_PAIRS_KEPT
    ]
