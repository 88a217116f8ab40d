"""The monitor: looks at the generator while it trains, and leaves training as if nothing had looked."""

import re
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from relict_lightning.callbacks.evaluation.averaging import Moment
from relict_lightning.callbacks.evaluation.background import can_check_in_background
from relict_lightning.callbacks.evaluation.drawing import SampleDrawer
from relict_lightning.callbacks.evaluation.evaluator import Evaluator, Found
from relict_lightning.callbacks.evaluation.occasion import Occasion, is_dry_run
from relict_lightning.callbacks.failures import Failures
from relict_lightning.callbacks.listed import callbacks_of
from relict_lightning.callbacks.pace import Pace
from relict_lightning.callbacks.preparation import describe_power, fit_detector
from relict_lightning.callbacks.reporting import onset_summary, run_settings
from relict_lightning.callbacks.rollback.kept import KeptCheckpoint
from relict_lightning.callbacks.schedule import Schedule
from relict_lightning.callbacks.sources import heldout_source, load_validation, training_source
from relict_lightning.callbacks.telling import Teller
from relict_lightning.data import random_state_kept
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import ConfigurationError, DrawingInterrupted, RelictWarning, SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.onset import (
    Forecast,
    Onset,
    OnsetDetector,
    RunState,
    WatchReason,
    evaluation_from_primitives,
    evaluation_to_primitives,
)
from relict_lightning.report import write_report
from relict_lightning.results import DetectionResult, Evaluation, MatchedPair
from relict_lightning.samplers import resolve_sampler
from relict_lightning.tracking import logged_values, with_prefix

_CHUNK = 32
# The arguments on which evaluations depend: a run that is resumed with others goes on, and says so.
_SETTINGS = (
    "name", "num_samples", "every_n_epochs", "every_n_steps", "every_n_minutes", "at_steps", "adaptive",
    "max_overhead", "alpha", "tolerance", "patience", "seed",
)  # fmt: skip


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
        sampler: Where samples come from: a `Sampler`, such as the ready ones in `relict_lightning.samplers`, a function
            of (module, n), or the name of a method of the module. None calls `module.sample(n)`, with a `generator`
            where it takes one; `predict_step` is called through the trainer's strategy.
        num_samples: Samples per evaluation.
        every_n_epochs: Epochs between evaluations. Where the trainer validates, evaluations wait for the next
            validation, so that other callbacks read them in time.
        every_n_steps: Optimizer steps between evaluations; when given, epochs do not count.
        every_n_minutes: Minutes between evaluations; when given, epochs do not count. Of these and the next argument
            one may be given.
        at_steps: Optimizer steps to evaluate at; when given, epochs do not count.
        adaptive: Whether to leave out due points while nothing happens, up to seven of eight, and none any more from
            the first sign of memorization on.
        training: Training images: whatever `ReplicaDetector.fit` takes, or the name of an attribute of the
            datamodule. None takes the data set of the training dataloader.
        heldout: Images of other patients, in the same forms. None takes the data set of the validation dataloader.
        alpha: Bound on the probability of a false alarm over the whole run.
        tolerance: Replica rate that is put up with.
        patience: Evaluations in a row that must pass before onset is declared, at least 1; it is dated to the first.
        max_overhead: Seconds to spend on evaluations per second of training at most; evaluations that are due wait
            until there is time for them, and it is said that they did. The index and the evaluations at the start and
            at the end do not wait. None sets no bound.
        on_error: What an evaluation or a logger that fails does to training: "warn" goes on with the last numbers,
            which are marked as stale, and tells what happened in the local file `relict_failures.txt` in the trainer's
            `default_root_dir`, because it may name a patient; "raise" stops. What is found wrong before the first step
            stops in any case: images that cannot be read, a sampler that is missing or returns something else.
        evaluate_at_start: Whether to evaluate before the first step.
        evaluate_at_end: Whether to evaluate the final weights where the last evaluation saw earlier ones.
        background: Whether samples are checked on the CPU, in a process of its own, while training goes on, which then
            waits for drawing only. What is found is taken in as soon as it is known, a few steps late, and counts for
            the step and the weights that the samples were drawn at; an evaluation that is due before the last one is
            checked waits for it. Other callbacks read the values late as well: what `ModelCheckpoint` saves by them are
            later weights, what `MemorizationCheckpoint` keeps are those that were evaluated. It pays where training and
            sampling keep a GPU busy and cores are idle, and not where training uses those cores. Encoder and segmenter
            must be picklable. Not with several training processes or on Windows, where samples are checked as without.
        sample_batch_size: Samples drawn at a time, the same each time; None draws up to 32. Where memory runs out it is
            halved.
        cache_dir: Where the index is kept and found again; None takes `relict_cache` in the trainer's
            `default_root_dir`. It holds patient data and stays on this machine. Not used with a `detector`.
        seed: Seed of all sampling.
        log_images: Whether pictures of matched pairs, which show patients, are sent to the loggers.
        report_path: Where to write the HTML report, which shows patients, when training ends; None writes none.
        progress: Whether to show progress bars; None follows the trainer's.
        name: What tells this monitor from others in the same trainer, of letters, digits, `_`, `.` and `-`; its numbers
            are logged under `relict/<name>/`.

    Raises:
        ConfigurationError: If an argument lies outside its range, two exclude each other, or `name` has other
            characters; before the first step, if `background` is asked for and encoder or segmenter cannot be pickled.

    Attributes:
        history: Every evaluation so far.
        onset: When memorization was established, None while it is not.
        last_result: What the detector found at the last evaluation.
        last_pairs: The samples most like a copy at the last evaluation, with their matches.
        rollback: The checkpoint to go back to, once `MemorizationCheckpoint` has named one.
        evaluated_now: Whether the newest training step was evaluated, or, with `background`, what an evaluation found
            became known at it.
        awaited_step: The step of the evaluation that is being checked in the background; None while none is.
        is_stale: Whether an evaluation that was due failed since the last one that did not.
        failures: How many evaluations or loggers failed.
    """

    def __init__(
        self,
        detector: ReplicaDetector | None = None,
        *,
        sampler: Sampler | Callable[..., Tensor] | str | None = None,
        num_samples: int = 64,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: int | float | None = None,
        at_steps: Iterable[int] | None = None,
        adaptive: bool = False,
        training: Any | None = None,
        heldout: Any | None = None,
        alpha: float = 0.05,
        tolerance: float = 0.01,
        patience: int = 1,
        max_overhead: int | float | None = None,
        on_error: str = "warn",
        evaluate_at_start: bool = True,
        evaluate_at_end: bool = True,
        background: bool = False,
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
        if max_overhead is not None and not max_overhead > 0:
            raise ConfigurationError(f"max_overhead must be above 0, got {max_overhead}.")
        if on_error not in ("warn", "raise"):
            raise ConfigurationError(f"on_error must be 'warn' or 'raise', got {on_error!r}.")
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
        self.every_n_minutes = every_n_minutes
        # A list, also where Hydra passes one of its own.
        self.at_steps = None if at_steps is None else [int(step) for step in at_steps]
        self.adaptive = adaptive
        self.alpha = alpha
        self.tolerance = tolerance
        self.patience = patience
        self.max_overhead = max_overhead
        self.on_error = on_error
        self.training = training
        self.heldout = heldout
        self.evaluate_at_start = evaluate_at_start
        self.evaluate_at_end = evaluate_at_end
        self.background = background
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.seed = seed
        self.log_images = log_images
        self.report_path = None if report_path is None else Path(report_path)
        self.progress = progress
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget all that belongs to one run."""
        self.schedule = Schedule(
            every_n_epochs=self.every_n_epochs,
            every_n_steps=self.every_n_steps,
            every_n_minutes=self.every_n_minutes,
            at_steps=self.at_steps,
            adaptive=self.adaptive,
        )
        self._pace = Pace(self.schedule, max_overhead=self.max_overhead)
        self._evaluator = Evaluator(self._drawer, num_samples=self.num_samples, watcher=self)
        self._failures = Failures()
        self._teller = Teller(self._failures, monitor=self.name, stops=self.on_error == "raise")
        self._onset_detector = OnsetDetector(alpha=self.alpha, tolerance=self.tolerance, patience=self.patience)
        self.history: list[Evaluation] = []
        self.last_result: DetectionResult | None = None
        self.last_pairs: list[MatchedPair] = []
        self.rollback: KeptCheckpoint | None = None
        self.evaluated_now = False
        self.is_stale = False
        self._stands_as_new = False
        self._shown_at_a_step = False
        self._tried_at: int | None = None
        self._shown_in_epoch: int | None = None

    @property
    def state_key(self) -> str:
        """A key of its own for each name: two monitors keep two histories, and a setting can change on resume."""
        return self._generate_state_key(name=self.name)

    @property
    def onset(self) -> Onset | None:
        """When memorization was established; None while it is not."""
        return self._onset_detector.onset

    @property
    def state(self) -> RunState:
        """How the run stands: clean, watched because of early signs, or past its onset."""
        return self._onset_detector.state

    @property
    def watch(self) -> WatchReason | None:
        """Why the run is watched; None where it is not, and after onset."""
        return self._onset_detector.watch

    @property
    def watch_reason(self) -> str | None:
        """The same in a sentence, with its numbers."""
        return self._onset_detector.watch_reason

    @property
    def forecast(self) -> Forecast | None:
        """When onset is expected; None as long as replicas do not become more, and after onset."""
        return self._onset_detector.forecast

    @property
    def failures(self) -> int:
        """How many evaluations or loggers failed in this run."""
        return self._failures.count

    @property
    def awaited_step(self) -> int | None:
        """The step of the evaluation that is being checked in the background; None while none is."""
        return None if self._evaluator.awaited is None else self._evaluator.awaited.step

    # Hooks ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start a run afresh; the state of one that is resumed is loaded after this.

        Raises:
            ConfigurationError: If another monitor in the trainer has the same name.
        """
        if stage != TrainerFn.FITTING:
            return
        others = [other for other in callbacks_of(trainer) if isinstance(other, ReplicaMonitor) and other is not self]
        if any(other.name == self.name for other in others):
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
        self._evaluator.begin(
            self._fitted_detector,
            background=self.background and can_check_in_background(trainer),
            progress=self._shows_progress(trainer),
        )
        self._pace.begin()
        if self._evaluator.has_left_one:
            # It accounts for all that has become due since.
            self._evaluate(trainer, pl_module, moment="start", completed=self._pace.completed(trainer))
        elif self.evaluate_at_start and not self.history:
            # Not through the module's `log`: what is logged here would overwrite the first epoch's value at its end.
            self._evaluate(trainer, pl_module, moment="start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where a number of steps or minutes is due."""
        self.evaluated_now = False
        has_news = self._receive(trainer)
        if self.schedule.unit != "epochs":
            completed = self._pace.completed(trainer)
            if self._is_due(trainer, completed):
                self._evaluate(trainer, pl_module, moment="batch", completed=completed)
                has_news = True
            # What was found at the start was logged at no step yet, and others may look for it at this one.
            has_news |= not self._shown_at_a_step
        # Values stand until others are logged: what was new at an earlier step must not pass for new at this one.
        if self.history and (has_news or self.evaluated_now or self._stands_as_new):
            self._stands_as_new, self._shown_at_a_step = self.evaluated_now, True
            pl_module.log_dict(
                with_prefix({**self.history[-1].measures, **self._flags}, monitor=self.name),
                on_step=True, on_epoch=False, logger=False, batch_size=1,
            )  # fmt: skip

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where an epoch is due and the trainer validates: early stopping reads the values right after."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        completed = trainer.current_epoch + int(trainer.is_last_batch)
        self._end_of_epoch(trainer, pl_module, completed=completed, moment="validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where an epoch is due and the trainer does not validate."""
        if not _validates(trainer):
            self._end_of_epoch(trainer, pl_module, completed=trainer.current_epoch + 1, moment="epoch")
        elif self._receive(trainer, waits=not self.history) or self._shown_in_epoch != trainer.current_epoch:
            # An epoch without validation, or one that a resumed run finds finished.
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the final weights if the last evaluation saw others, and say how it ended."""
        self._receive(trainer, waits=True)
        seen = self.history and self.history[-1].step == trainer.global_step
        # What is still awaited is left, because the run was told to end.
        if self.evaluate_at_end and not seen and self.awaited_step is None:
            self._evaluate(trainer, pl_module, moment="end")
        self._evaluator.close()
        self._pace.say_what_it_cost()
        if self.failures:
            rank_zero_info(f"ReplicaMonitor failed {self.failures} times in this run; the warnings say why.")
        last_rate = self.history[-1].replica_rate if self.history else None
        if self.onset is None and last_rate is not None:
            rank_zero_info(f"No memorization onset in {len(self.history)} evaluations; last replica rate {last_rate}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, once the checkpoint to go back to is named, also where onset was found at the end."""
        if self.report_path is not None and self.history and not is_dry_run(trainer):
            write = partial(self._write_report, self.report_path, model=type(pl_module).__name__)
            self._teller.on_first(trainer, write, doing="Writing the report")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave what is being checked in the background; it stays due."""
        self._evaluator.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind, however the run ended."""
        self._evaluator.close()

    def settings(self) -> dict[str, str]:
        """Return what the numbers of this run depend on, in words."""
        return run_settings(
            self._fitted_detector,
            schedule=self.schedule,
            num_samples=self.num_samples,
            alpha=self.alpha,
            tolerance=self.tolerance,
            seed=self.seed,
        )

    # Evaluation -------------------------------------------------------------------------------------------------

    def _is_due(self, trainer: Trainer, completed: int | float) -> bool:
        """Return whether to evaluate now."""
        if not self._pace.is_due(trainer, completed):
            return False
        if self.awaited_step is None:
            return True
        # One is checked at a time, and what it finds decides when the next is due.
        return self._receive(trainer, waits=True) and self._is_due(trainer, completed)

    def _end_of_epoch(self, trainer: Trainer, pl_module: LightningModule, *, completed: int, moment: Moment) -> None:
        """Evaluate if it is due, or the start's failed; show the new values, or the last ones again."""
        self.evaluated_now = False
        # Strict callbacks fail without a value: as long as there is none, training waits for what is being checked.
        self._receive(trainer, waits=not self.history)
        counts_epochs = self.schedule.unit == "epochs"
        if self._start_is_owed and self._tried_at != trainer.global_step:
            completed_now = completed if counts_epochs else self._pace.completed(trainer)
            self._evaluate(trainer, pl_module, moment=moment, completed=completed_now)
        elif counts_epochs and self._is_due(trainer, completed):
            self._evaluate(trainer, pl_module, moment=moment, completed=completed)
        self._receive(trainer, waits=not self.history)
        self._show(trainer, pl_module)

    @property
    def _start_is_owed(self) -> bool:
        """Whether the evaluation at the start failed, and none has made up for it."""
        return self.evaluate_at_start and not self.history and self.awaited_step is None

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last values to other callbacks: early stopping and checkpoints expect some at every epoch.

        The loggers are written to elsewhere, once for each evaluation, because Lightning refuses a name whose `logger`
        differs from one call to the next.
        """
        if not self.history:
            return
        self._shown_in_epoch = trainer.current_epoch
        pl_module.log_dict(
            with_prefix({**self.history[-1].measures, **self._flags}, monitor=self.name),
            on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True,
        )  # fmt: skip

    @property
    def _flags(self) -> dict[str, float]:
        """What tells new values from values that are shown again."""
        return {"evaluated": float(self.evaluated_now), "stale": float(self.is_stale)}

    def measure_again(self, trainer: Trainer, pl_module: LightningModule) -> DetectionResult:
        """Return what is found of newly drawn samples, which no evaluation has seen; nothing of it is recorded.

        All processes call this together, while the trainer fits.

        Args:
            trainer: The trainer.
            pl_module: The model to sample from, which is left as it was.

        Raises:
            SamplerError: If the samples are not what was asked for.
            OtherProcessError: If it failed on another process.
            DrawingInterrupted: If the run is told to end.
        """
        return self._evaluator.measure_again(trainer, pl_module).result

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, *, moment: Moment, completed: int | float = 0
    ) -> None:
        """Evaluate the weights that a checkpoint saved now would hold, and write what is found to the loggers."""
        started = time.perf_counter()
        self._tried_at = trainer.global_step
        occasion = self._evaluator.occasion(trainer, completed=completed)
        try:
            found = self._evaluator.evaluate(trainer, pl_module, occasion, number=len(self.history), moment=moment)
        except DrawingInterrupted as interrupted:
            # The run is about to be saved and to end. It stays due, and is made when the run is resumed.
            rank_zero_info(str(interrupted))
            return
        except Exception as error:  # noqa: BLE001 - raised again where that is asked for
            self._fail(trainer, error, occasion)
        else:
            if found is not None:
                self._take_in(trainer, found)
        self._pace.take(trainer, occasion.completed, seconds=time.perf_counter() - started)

    def _receive(self, trainer: Trainer, *, waits: bool = False) -> bool:
        """Take in what was found in the background, if it is known by now, and return whether it is.

        Args:
            trainer: The trainer.
            waits: Whether to wait until it is known, unless the run is told to end.
        """
        awaited, started = self._evaluator.awaited, time.perf_counter()
        if awaited is None:
            return False
        try:
            found = self._evaluator.receive(trainer, waits=waits)
        except Exception as error:  # noqa: BLE001 - raised again where that is asked for
            self._fail(trainer, error, awaited)
            self._evaluator.give_up()
        else:
            if found is None:
                return False
            self._take_in(trainer, found)
        self._pace.extend(time.perf_counter() - started)
        return True

    def _fail(self, trainer: Trainer, error: Exception, occasion: Occasion) -> None:
        """Say that an evaluation failed, and go on; or raise what it failed by."""
        # Nothing is lost yet by stopping where a setting is wrong, and much by not watching the run.
        is_setting = isinstance(error, (ConfigurationError, SamplerError)) and occasion.step == 0
        if self.on_error == "raise" or trainer.strategy.reduce_boolean_decision(is_setting, all=False):
            raise error
        self.is_stale = True
        self._failures.report(
            error, doing="An evaluation of ReplicaMonitor", step=occasion.step, folder=trainer.default_root_dir
        )
        self._teller.tell_values(trainer, {"stale": 1.0}, step=occasion.step)

    def _take_in(self, trainer: Trainer, found: Found) -> None:
        """Take what an evaluation found into the history, and write it to the loggers."""
        result, pairs = found.checked.result, found.checked.pairs
        step, epoch, train_loss = found.occasion.step, found.occasion.epoch, found.occasion.train_loss
        level, watched_before = self._onset_detector.next_level, self.watch_reason is not None
        newly = self._onset_detector.update(result, step=step, epoch=epoch)
        values = logged_values(result, state=self.state, costs=found.costs)
        if self.forecast is not None:
            values["onset_forecast_step"] = float(self.forecast.step)
        context = {"alpha_threshold": level} if result.replica_rate is not None else {}
        if train_loss is not None:
            context["train_loss"] = train_loss
        self.history.append(
            Evaluation(step=step, epoch=epoch, replica_rate=result.replica_rate, measures=values, context=context)
        )
        self.last_result, self.last_pairs = result, pairs
        self.evaluated_now, self.is_stale = True, False
        if step > 0:
            self._pace.follow(signs=self.state is not RunState.CLEAN)
        if newly is not None:
            rank_zero_info(newly.reason)
            self._teller.tell_onset(trainer, newly)
        elif self.watch_reason is not None and not watched_before:
            forecast = "" if self.forecast is None else f" Onset is forecast for {self.forecast}."
            rank_zero_info(
                f"Early sign of memorization at step {step}, not yet an onset. {self.watch_reason}{forecast}"
            )
        self._teller.tell_values(trainer, {**values, "stale": 0.0}, step=step)
        if self.log_images and not is_dry_run(trainer):
            self._teller.show_pairs(trainer, pairs, step=step)

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
            # What is not known yet is made again where the run is resumed from here.
            **self._pace.state_dict(before_last=self.awaited_step is not None),
            "awaited": self._evaluator.state_dict(),
            "onset": self._onset_detector.state_dict(),
            "history": [evaluation_to_primitives(evaluation) for evaluation in self.history],
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
        self._pace.load_state_dict(state_dict)
        counts_alike = state_dict["schedule"].get("unit") == self.schedule.unit
        self._evaluator.load_state_dict(state_dict.get("awaited"), counts_alike=counts_alike)
        self._onset_detector.load_state_dict(state_dict["onset"])
        self.history = [evaluation_from_primitives(evaluation) for evaluation in state_dict["history"]]


def _validates(trainer: Trainer) -> bool:
    """Return whether the trainer runs a validation loop during this fit."""
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0
