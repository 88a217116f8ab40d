"""Finding replicas: samples to hits to evidence to verdicts. No Lightning, and no files but the cache."""

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from relict_lightning.calibration import Rule
from relict_lightning.comparison import MEASUREMENT_VERSION
from relict_lightning.control import (
    Control,
    merge_copies,
    new_patients_only,
    read_control,
    write_control,
)
from relict_lightning.data import ImageBatch, ImageSource, is_datamodule, open_images
from relict_lightning.duplicates import TrainingAudit, find_duplicates, find_leaks
from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    IndexStaleError,
    InvalidImageError,
    MissingControlError,
    NotFittedError,
    RelictWarning,
)
from relict_lightning.evidence import Look
from relict_lightning.fitted import Fitted, read_fitted, read_settings, write_fitted
from relict_lightning.functional import minimum_discoveries, mirror, warp_affine
from relict_lightning.functional.statistics import TAIL_CONTROLS
from relict_lightning.index import (
    BuildOptions,
    Check,
    Entry,
    IntensityScale,
    Pipeline,
    Reference,
    Search,
    Store,
    build_reference,
    combine,
    default_memory,
    digest_module,
    open_or_put_aside,
    writing,
)
from relict_lightning.intensities import warn_of_other_intensities
from relict_lightning.processes import Processes
from relict_lightning.results import DetectionResult, MatchedPair
from relict_lightning.road import Road
from relict_lightning.rule_learning import LearnedRule, checked_ratings, learn_rule
from relict_lightning.segmenters import IntensitySegmenter, label_maps
from relict_lightning.self_test import SelfTest
from relict_lightning.usual import Usual, describe_usual, read_usual, write_usual
from relict_lightning.verdicts import conclude, conclude_without_control

_LOGGER = logging.getLogger(__name__)

Images: TypeAlias = Any
"""Whatever `relict_lightning.data.open_images` reads."""


@final
class ReplicaDetector:
    """Decides which samples are replicas of training images, and of which.

    A sample's nearest training images are retrieved by several views, compared voxel by voxel and structure by
    structure, and judged against the same measurement on held-out patients.

    Args:
        encoder: Images to embeddings; any module. None takes `GradientEncoder`, which needs no weights. The detector
            keeps a frozen copy.
        segmenter: Images to label maps; any module that returns label maps `[n, *spatial]` or scores
            `[n, labels, *spatial]`. None takes `IntensitySegmenter`. The detector keeps a frozen copy.
        top_k: Hits per view, at least 2.
        fdr: False discovery rate of the verdicts, in (0, 1).
        transforms: Which alterations to look through: "default" mirrors along each axis and aligns by displacement (up
            to a tenth of the shortest side), rotation, scale and shear, "none" compares images as they are.
        match_look: Whether `detect`, where it finds replicas, measures the held-out images once more, filtered and
            recoloured to look like the samples, and lets the stricter of both controls decide. For generators whose
            samples are much more blurred or noisy than patients; it costs as much as checking so many samples. The
            self-test judges planted copies by the first control alone.
        cache_dir: Folder in which what `fit` builds is kept and found again. None keeps it in memory. It holds
            patient data.
        store: How the training images are kept for comparison: "float16", "uint8" (half the space, to 1/510 of each
            image's intensity range), or "reference" (not at all: they are read again from the data set).
        check: How `fit` recognises a set that is in the cache. "full" reads and hashes every image. "sampled" reads
            some, and looks at names, sizes and dates of files: fast for data that are slow to read, and blind to an
            image that changed without its file's size or date.
        search: How the nearest training images are looked up. "auto" compares with every one, unless their vectors do
            not fit the memory; then FAISS proposes candidates ("ivf_pq"), which are compared exactly. "exact" always
            compares with every one; "flat" and "ivf_flat" are other indexes of FAISS.
        memory_gib: Memory that the vectors of one view may take, in GiB; None takes an eighth of the machine's.
        hash_ids: Whether ids and patients are known by keyed hashes only, in the cache and in results.
        num_workers: Processes that read the data sets ahead.
        progress: Whether `fit` shows progress bars.

    Raises:
        ConfigurationError: If an argument lies outside its range.

    Example:
        >>> images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> detector = ReplicaDetector().fit(images[:20], images[20:])
        >>> [verdict.match for verdict in detector.detect(images[:2]).verdicts]
        [0, 1]

    References:
        RELICT, arXiv:2502.17360.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        segmenter: nn.Module | None = None,
        *,
        top_k: int = 5,
        fdr: float = 0.05,
        transforms: Literal["default", "none"] = "default",
        match_look: bool = False,
        cache_dir: str | Path | None = None,
        store: Store = "float16",
        check: Check = "full",
        search: Search = "auto",
        memory_gib: float | None = None,
        hash_ids: bool = False,
        num_workers: int = 0,
        progress: bool = False,
    ) -> None:
        if top_k < 2:
            raise ConfigurationError(
                f"top_k must be at least 2, so that a hit has something to be judged against; got {top_k}."
            )
        _check_fdr(fdr)
        if transforms not in ("default", "none"):
            raise ConfigurationError(f'transforms must be "default" or "none", got {transforms!r}.')
        if store not in get_args(Store):
            raise ConfigurationError(f"store must be one of {', '.join(get_args(Store))}, got {store!r}.")
        if check not in get_args(Check):
            raise ConfigurationError(f"check must be one of {', '.join(get_args(Check))}, got {check!r}.")
        if search not in get_args(Search):
            raise ConfigurationError(f"search must be one of {', '.join(get_args(Search))}, got {search!r}.")
        if memory_gib is not None and not memory_gib > 0:
            raise ConfigurationError(f"memory_gib must be positive, got {memory_gib}.")
        if num_workers < 0:
            raise ConfigurationError(f"num_workers must not be negative, got {num_workers}.")
        self.top_k = top_k
        self.fdr = fdr
        self.transforms: Literal["default", "none"] = transforms
        self.match_look = match_look
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.store: Store = store
        self.check: Check = check
        self.search: Search = search
        self.memory_gib = memory_gib
        self.hash_ids = hash_ids
        self.num_workers = num_workers
        self.progress = progress
        self.processes = Processes()
        self.device = torch.device("cpu")
        self._encoder = _frozen(encoder, GradientEncoder)
        self._segmenter = _frozen(segmenter, IntensitySegmenter)
        self._segmenter_is_given = segmenter is not None
        # Taken before first use, because a module may count or remember what it is shown.
        self._encoder_digest = digest_module(self._encoder)
        self._segmenter_digest = digest_module(self._segmenter)
        self._fitted: Fitted | None = None

    def fit(
        self,
        training: Images,
        heldout: Images | None = None,
        *,
        training_segmentations: Any | None = None,
        heldout_segmentations: Any | None = None,
        training_groups: Any | None = None,
        heldout_groups: Any | None = None,
    ) -> "ReplicaDetector":
        """Build the reference of the training set and the control of the held-out set, or find them in the cache.

        Args:
            training: An array or tensor `[m, c, *spatial]`, a data set (map-style or iterable), a `DataLoader` (its
                data set is read), a sequence of MONAI-style dictionaries (`image`, and optionally `id`, `group`), or a
                `LightningDataModule`, whose validation set is then the held-out set unless `heldout` is given.
            heldout: Images of patients that the model is not trained on, in the same forms. Without them there is no
                replica rate, no p-value and no onset; hits and their evidence are still found.
            training_segmentations: Label maps `[m, *spatial]`. None segments the images.
            heldout_segmentations: Label maps of the held-out images; needed where `training_segmentations` are given
                without a segmenter.
            training_groups: Patient of each training image. None takes each image's `group`, or the image itself.
            heldout_groups: Patient of each held-out image.

        Returns:
            The detector itself.

        Raises:
            EmptyDataError: If either set has fewer than two patients, held-out ones that resemble training patients as
                only copies do left out.
            InvalidImageError: If images are not finite, or not all of one shape.
            NondeterministicDataError: If two reads of one item differ.
            ConfigurationError: If label maps are given for one set only and no segmenter makes the others.
        """
        given = training_segmentations is not None
        needs_label_maps = given and not self._segmenter_is_given
        if not self._segmenter_is_given and not given and heldout_segmentations is not None:
            raise ConfigurationError(
                "heldout_segmentations are given, and training_segmentations are not. Pass them too, or a segmenter "
                "that makes the same labels: the control must be compared with the training images like for like."
            )
        if needs_label_maps and heldout is not None and heldout_segmentations is None:
            raise ConfigurationError(
                "training_segmentations are given, and heldout_segmentations are not. Pass them too, or a segmenter "
                "that makes the same labels: the control must take the same road as the samples."
            )
        if heldout is None and is_datamodule(training):
            heldout = training
        source = open_images(training, role="training", segmentations=training_segmentations, groups=training_groups)
        if source.has_segmentations and not given:
            _LOGGER.info("The training items bring label maps, which are not used: samples would need them too.")
        named = self._reference(source, None, given=given)
        reference = merge_copies(named)
        groups = len(set(reference.groups))
        if groups < 2:
            raise EmptyDataError(
                f"The training set has {len(reference)} image(s) of {groups} patient; at least 2 patients are needed, "
                f"because a likeness is judged against the other patients. Pass the whole training set."
            )
        if heldout is None:
            self._fitted = Fitted(
                training=reference,
                usual=describe_usual(reference),
                heldout=None,
                control=None,
                needs_label_maps=needs_label_maps,
            )
            return self
        try:
            others = open_images(heldout, role="held-out", segmentations=heldout_segmentations, groups=heldout_groups)
            self._fitted = self._with_control(
                reference,
                others,
                known_groups=set(named.groups),
                given=heldout_segmentations is not None,
                needs_label_maps=needs_label_maps,
            )
        except BaseException:
            # What an earlier fit learned must not pass for what this one was to learn.
            self._fitted = None
            raise
        return self

    def detect(
        self, generated: Images, *, generated_segmentations: Any | None = None, fdr: float | None = None
    ) -> DetectionResult:
        """Return a verdict for every sample, and the rates and p-values of the set.

        Args:
            generated: Samples `[n, c, *spatial]` on the training images' intensity scale, floating point.
            generated_segmentations: Their label maps `[n, *spatial]`. None segments them.
            fdr: False discovery rate; None takes the detector's.

        Raises:
            NotFittedError: If `fit` was not called.
            InvalidImageError: If samples are not finite, not floating point, or not of the training images' shape.
            ConfigurationError: If the training images brought label maps and the samples have none, or the reverse,
                and no segmenter was given.
        """
        fdr = self.fdr if fdr is None else fdr
        _check_fdr(fdr)
        fitted = self._state
        images, given_maps = self._samples(generated, generated_segmentations)
        look = self._look(images, given_maps)
        if fitted.control is None or fitted.unseen is None:
            return conclude_without_control(look, fitted.training, fdr=fdr)
        self._warn_if_nothing_can_be_found(len(look), fdr)
        return conclude(
            look,
            fitted.training,
            heldout=fitted.unseen,
            control=fitted.control,
            fdr=fdr,
            look_matched=partial(self._fitted_road.look_matched_likeness, fitted.unseen, images)
            if self.match_look
            else None,
        )

    def learn_rule(
        self,
        generated: Images,
        is_replica: Sequence[bool],
        *,
        generated_segmentations: Any | None = None,
        seed: int = 0,
    ) -> LearnedRule:
        """Learn from expert ratings how the levels are put together, and do so from now on where that is better.

        Whether it is better is judged out of sample, by nested cross-validation; where it is not beyond chance, the
        label-free rule stays. `save` keeps the rule; `fit` forgets it.

        Args:
            generated: The rated samples `[n, c, *spatial]`, as `detect` takes them.
            is_replica: The ratings, one per sample: whether it is a replica. At least 10 are, and 10 are not, and both
                match at least 5 patients.
            generated_segmentations: Their label maps `[n, *spatial]`. None segments them.
            seed: Seed of the folds.

        Returns:
            Both rules' areas under the ROC curve, and which one is used now.

        Raises:
            NotFittedError: If `fit` was not called.
            MissingControlError: If there are no held-out images.
            ConfigurationError: If the ratings are too few, or not one per sample.
            InvalidImageError: If samples are not finite, not floating point, or not of the training images' shape.
        """
        fitted = self._state
        if fitted.control is None:
            raise MissingControlError(
                "A rule says how far levels exceed what is usual in held-out images, and there are none. "
                "Pass them to `fit(training, heldout)`."
            )
        images, given_maps = self._samples(generated, generated_segmentations)
        # Looking at samples takes minutes, and too few ratings are found at once.
        rated = checked_ratings(is_replica, count=len(images))
        look = self._look(images, given_maps)
        control, rule = fitted.control.likeness, fitted.control.rule
        match = look.evidence.training[look.likeness.best_pairs(control=control, rule=rule)]
        learned = learn_rule(
            look.likeness.by_measure,
            control,
            is_replica=rated,
            groups=fitted.training.group_codes[match],
            rule=rule,
            seed=seed,
        )
        self._fitted = replace(fitted, control=self._ruled(fitted.control, learned.rule))
        return learned

    def matched_pairs(self, generated: Images, result: DetectionResult, positions: Sequence[int]) -> list[MatchedPair]:
        """Return samples beside the training images that they match, moved onto them, for people to look at.

        Args:
            generated: The samples that `result` was made from.
            result: What `detect` returned.
            positions: Which samples.
        """
        images, _ = self._read_samples(generated, None)
        matches = self._state.training.fetch_volumes(np.array([result.verdicts[p].match for p in positions], dtype=int))
        pairs = []
        for position, training in zip(positions, matches, strict=True):
            verdict = result.verdicts[position]
            moved = mirror(images[position : position + 1], verdict.transform.mirrored_axes)
            moved = warp_affine(moved, torch.tensor([verdict.transform.map]))
            pairs.append(MatchedPair(generated=moved[0], training=torch.from_numpy(training), verdict=verdict))
        return pairs

    def audit_training(self) -> TrainingAudit:
        """Return near-duplicates among training images of different patients, and held-out images like training images.

        Duplicates are what a model memorizes first; held-out images that are training images in disguise make copies
        look ordinary. Both are found by the same search as replicas.

        Raises:
            NotFittedError: If `fit` was not called.
        """
        fitted = self._state
        leaks = () if fitted.heldout is None else find_leaks(fitted.heldout, fitted.training)
        return TrainingAudit(duplicates=find_duplicates(fitted.training), leaks=leaks)

    def self_test(self, *, copies_per_alteration: int = 4, seed: int = 0) -> SelfTest:
        """Plant altered copies of training images, and return which of them are found.

        "No replicas found" says something only where replicas would have been found. Copies are recoloured, shifted,
        turned, mirrored, bent, cropped and transplanted, and take the road of samples; it costs as much as checking so
        many samples.

        Args:
            copies_per_alteration: Copies per alteration, at least 1, each of another training patient.
            seed: Seed of the choice of patients and strengths.

        Raises:
            NotFittedError: If `fit` was not called.
            MissingControlError: If there are no held-out images.
            ConfigurationError: If `copies_per_alteration` is below 1.

        Example:
            >>> images = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
            >>> detector = ReplicaDetector().fit(images[:30], images[30:])
            >>> detector.self_test(copies_per_alteration=1).overall_recall.trials
            8
        """
        fitted = self._state
        if fitted.unseen is None or fitted.control is None:
            raise MissingControlError(
                "The self-test judges planted copies against held-out images, and there are none. "
                "Pass them to `fit(training, heldout)`."
            )
        return self._fitted_road.test_itself(
            fitted.unseen, fitted.control, copies_per_alteration=copies_per_alteration, seed=seed, fdr=self.fdr
        )

    @property
    def self_test_at_fit(self) -> SelfTest | None:
        """What `fit` found of two planted copies per alteration; None without a control, or of images too small."""
        control = self._state.control
        return None if control is None else control.self_test

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` or `load` was called."""
        return self._fitted is not None

    @property
    def has_control(self) -> bool:
        """Whether held-out images were given, so that there are rates and p-values."""
        return self._state.control is not None

    @property
    def takes_label_maps(self) -> bool:
        """Whether samples may bring label maps: as training images did, or of the labels of a segmenter."""
        return self._state.needs_label_maps or self._segmenter_is_given

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `[c, *spatial]` that samples must have."""
        return self._state.training.image_shape

    @property
    def training_groups(self) -> int:
        """Number of training patients."""
        return len(set(self._state.training.groups))

    @property
    def heldout_groups(self) -> int:
        """Number of held-out patients in the control; 0 without any."""
        unseen = self._state.unseen
        return 0 if unseen is None else len(set(unseen.groups))

    @property
    def from_cache(self) -> bool:
        """Whether the reference was found in the cache rather than built."""
        return self._state.training.from_cache

    @property
    def build_seconds(self) -> float:
        """Seconds that building references and control took, now or when they were put into the cache."""
        fitted = self._state
        seconds = fitted.training.seconds + (0.0 if fitted.heldout is None else fitted.heldout.seconds)
        return seconds + (0.0 if fitted.control is None else fitted.control.seconds)

    def share(self, processes: Processes) -> "ReplicaDetector":
        """Share all work with other processes, which must call the same methods with the same arguments.

        Each embeds and keeps a share of the training set. Results are those of one process, and the same on all.

        Args:
            processes: For instance `Processes.current()`, all of `torch.distributed`.

        Returns:
            The detector.

        Raises:
            ConfigurationError: If the detector was fitted already.
        """
        if self.is_fitted:
            raise ConfigurationError("This detector was fitted already. Call `share` before `fit`.")
        self.processes = processes
        return self

    def to(self, device: torch.device | str) -> "ReplicaDetector":
        """Move encoder, segmenter and comparisons to a device; return the detector."""
        self.device = torch.device(device)
        self._encoder.to(self.device)
        self._segmenter.to(self.device)
        return self

    def save(self, path: str | Path) -> Path:
        """Write the fitted detector into a new folder, which holds patient data, and return its path.

        Encoder and segmenter are not written; `load` takes them again and checks that they are the same.

        Raises:
            ConfigurationError: If the folder exists.
        """
        path = Path(path)
        fitted = self._state
        if path.exists():
            raise ConfigurationError(f"{path} exists already. Choose another folder, or delete it first.")
        digests = {"encoder": self._encoder_digest, "segmenter": self._segmenter_digest}
        settings = {"top_k": self.top_k, "fdr": self.fdr, "transforms": self.transforms, "match_look": self.match_look}

        def write() -> None:
            write_fitted(
                fitted,
                path,
                settings={"arguments": settings, "digests": digests},
                is_writer=self.processes.is_first,
            )

        self.processes.together(write, doing="Saving the detector")
        return path

    @classmethod
    def load(
        cls, path: str | Path, *, encoder: nn.Module | None = None, segmenter: nn.Module | None = None
    ) -> "ReplicaDetector":
        """Return the detector that `save` wrote.

        Args:
            path: The folder.
            encoder: The encoder that the detector was fitted with; None for the default one.
            segmenter: The segmenter that it was fitted with; None for the default one.

        Raises:
            FileNotFoundError: If there is no such folder.
            IndexCorruptError: If a file of it is damaged.
            IndexStaleError: If encoder or segmenter are others than the detector was fitted with.
        """
        entry = Entry(Path(path))
        saved: Any = read_settings(entry)
        detector = cls(encoder, segmenter, **saved["arguments"])
        given = {
            "encoder": (detector._encoder, detector._encoder_digest),
            "segmenter": (detector._segmenter, detector._segmenter_digest),
        }
        for name, (module, digest) in given.items():
            if digest != saved["digests"][name]:
                raise IndexStaleError(
                    f"The detector in {path} was fitted with another {name} than the {type(module).__name__} given now "
                    f"(class, configuration or weights differ). Pass the same one as `load(..., {name}=...)`, or fit."
                )
        detector._fitted = read_fitted(entry)
        return detector

    @property
    def modules(self) -> tuple[nn.Module, nn.Module | None]:
        """Encoder and segmenter as `load` takes them; None for the default segmenter."""
        return self._encoder, self._segmenter if self._segmenter_is_given else None

    def copy_on_cpu(self) -> "ReplicaDetector":
        """Return a detector with the same reference and control, and with copies of encoder and segmenter on the CPU.

        Raises:
            NotFittedError: If `fit` was not called.
        """
        encoder, segmenter = (None if module is None else copy.deepcopy(module).cpu() for module in self.modules)
        copied = ReplicaDetector(
            encoder,
            segmenter,
            top_k=self.top_k,
            fdr=self.fdr,
            transforms=self.transforms,
            match_look=self.match_look,
        )
        copied._fitted = self._state
        return copied

    def _samples(
        self, generated: Images, generated_segmentations: Any | None
    ) -> tuple[Float[Tensor, "n c *spatial"], Tensor | None]:
        """Return samples on the training set's scale, and the label maps that came with them, if they had to."""
        fitted = self._state
        if fitted.needs_label_maps and generated_segmentations is None:
            raise ConfigurationError(
                "The detector was fitted with training_segmentations and has no segmenter, so samples need label maps "
                "too. Pass generated_segmentations, or construct the detector with a segmenter of the same labels."
            )
        if not self.takes_label_maps and generated_segmentations is not None:
            raise ConfigurationError(
                "generated_segmentations are given, but the training images were segmented by intensity. Pass "
                "training_segmentations to fit, or construct the detector with a segmenter of the same labels."
            )
        images, given_maps = self._read_samples(generated, generated_segmentations)
        warn_of_other_intensities(images, fitted.training)
        return images, given_maps

    def _look(self, images: Float[Tensor, "n c *spatial"], given_maps: Tensor | None) -> Look:
        """Return what is measured of samples."""
        return self._fitted_road.look(images, self._segment(images) if given_maps is None else given_maps)

    @property
    def _state(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError("This detector knows no training images yet. Call `fit(training, heldout)` or `load`.")
        return self._fitted

    def _reference(self, source: ImageSource, scale: IntensityScale | None, *, given: bool) -> Reference:
        """Return the reference of one set; its label maps come from the data if `given`, else from the segmenter."""
        pipeline = Pipeline(
            given_scale=scale,
            encoder=self._encoder,
            encoder_digest=self._encoder_digest,
            segment=None if given else self._segment,
            segmenter_digest="given" if given else self._segmenter_digest,
            store=self.store,
            device=self.device,
        )
        options = BuildOptions(
            cache_dir=self.cache_dir,
            processes=self.processes,
            check=self.check,
            hash_ids=self.hash_ids,
            num_workers=self.num_workers,
            search=self.search,
            memory_bytes=default_memory() if self.memory_gib is None else int(self.memory_gib * 2**30),
            progress=self.progress,
        )
        return build_reference(source, pipeline, options)

    def _segment(self, images: Tensor) -> Tensor:
        return label_maps(self._segmenter, images, device=self.device)

    def _with_control(
        self, training: Reference, source: ImageSource, *, known_groups: set[str], given: bool, needs_label_maps: bool
    ) -> Fitted:
        """Return the fitted state with the held-out images and the control that they make."""
        if source.image_shape != training.image_shape:
            raise InvalidImageError(
                f"Held-out images have shape {source.image_shape}, training images {training.image_shape}. "
                f"Pass both through the same preprocessing."
            )
        everyone = self._reference(source, training.scale, given=given)
        heldout = new_patients_only(everyone, known_groups=known_groups, known_digests=training.item_digests)
        usual, control = self._control(training, heldout, everyone.fingerprint, needs_label_maps=needs_label_maps)
        if control.leaks:
            warnings.warn(
                f"{len(control.leaks)} of {len(control.leaks) + len(control.likeness)} held-out patients resemble "
                f"training patients as only copies or new scans of the same patient do. They are left out of the "
                f"control. Check how the sets were split.",
                RelictWarning,
                stacklevel=3,
            )
        return Fitted(
            training=training,
            usual=usual,
            heldout=heldout,
            control=control,
            needs_label_maps=needs_label_maps,
        )

    def _control(
        self, training: Reference, heldout: Reference, heldout_fingerprint: str, *, needs_label_maps: bool
    ) -> tuple[Usual, Control]:
        """Return what is usual and the control's measurements, from the cache where it holds them."""
        directory = None
        if self.cache_dir is not None:
            parts = {"training": training.fingerprint, "heldout": heldout_fingerprint, "ids": heldout.ids}
            settings: dict[str, Any] = {"top_k": self.top_k, "transforms": self.transforms}
            settings |= {"segmenter": self._segmenter_digest, "segmenter_is_given": self._segmenter_is_given}
            settings["measured"] = MEASUREMENT_VERSION
            directory = self.cache_dir / combine({**parts, **settings})
            find = partial(_found_control, directory) if self.processes.is_first else _nothing
            found = self.processes.gather(find, doing="Reading the control")[0]
            if found is not None:
                return found[0], found[1].at(self.fdr)
        usual = describe_usual(training)
        control = self._road(training, usual, needs_label_maps=needs_label_maps).measure_control(heldout, fdr=self.fdr)
        if directory is not None:
            put = partial(_put_control, usual, control, directory) if self.processes.is_first else _nothing
            self.processes.gather(put, doing="Writing the control")
        return usual, control

    def _read_samples(
        self, generated: Images, segmentations: Any | None
    ) -> tuple[Float[Tensor, "n c *spatial"], Tensor | None]:
        """Return samples on the unit scale, and the label maps that came with them, if any were passed."""
        source = open_images(generated, role="generated", segmentations=segmentations)
        batches = list(source.batches(64))
        images = self._state.training.scale.apply(torch.cat([batch.images for batch in batches]))
        if tuple(images.shape[1:]) != self.image_shape:
            raise InvalidImageError(
                f"Samples have shape {tuple(images.shape[1:])}, training images {self.image_shape}. "
                f"Decode, crop or resample the samples to the training images' grid."
            )
        return images, None if segmentations is None else torch.cat([_given_label_maps(batch) for batch in batches])

    @property
    def _fitted_road(self) -> Road:
        """The road that samples take."""
        fitted = self._state
        return self._road(fitted.training, fitted.usual, needs_label_maps=fitted.needs_label_maps)

    def _road(self, training: Reference, usual: Usual, *, needs_label_maps: bool) -> Road:
        """Return the road that samples and control take."""
        return Road(
            training=training,
            usual=usual,
            encoder=self._encoder,
            segmenter=self._segmenter,
            brings_label_maps=needs_label_maps,
            # The default segmenter's are classes of intensity.
            shows_structures=needs_label_maps or self._segmenter_is_given,
            align=self.transforms == "default",
            top_k=self.top_k,
            device=self.device,
        )

    def _ruled(self, control: Control, rule: Rule) -> Control:
        """Return the control with another rule, and what is found of planted copies by that one."""
        changed = replace(control, rule=rule)
        heldout = self._state.unseen
        if rule == control.rule or control.self_test is None or heldout is None:
            return changed
        return replace(changed, self_test=self._fitted_road.test_itself(heldout, changed, fdr=self.fdr))

    def _warn_if_nothing_can_be_found(self, num_samples: int, fdr: float) -> None:
        too_few = self.heldout_groups < TAIL_CONTROLS
        if too_few and minimum_discoveries(self.heldout_groups, num_samples, fdr=fdr) > num_samples:
            warnings.warn(
                f"With {self.heldout_groups} held-out patients no sample can be called a replica at a false discovery "
                f"rate of {fdr}, not even if all {num_samples} are copies. Add held-out patients "
                f"(at least {int(np.ceil(1 / fdr)) - 1}) or raise fdr.",
                RelictWarning,
                stacklevel=3,
            )


def _found_control(directory: Path) -> tuple[Usual, Control] | None:
    entry = open_or_put_aside(directory)
    if entry is None:
        return None
    return read_usual(entry, prefix="usual_"), read_control(entry, prefix="")


def _put_control(usual: Usual, control: Control, directory: Path) -> None:
    with writing(directory, {"count": len(control.likeness)}) as writer:
        write_usual(usual, writer, prefix="usual_")
        write_control(control, writer, prefix="")


def _nothing() -> None:
    """Leave it to the first process."""


def _given_label_maps(batch: ImageBatch) -> Tensor:
    assert batch.segmentations is not None  # noqa: S101 - asked for only where they were passed
    return batch.segmentations.long()


def _frozen(module: nn.Module | None, default: type[nn.Module]) -> nn.Module:
    """Return a copy of the module that training can no longer change."""
    frozen = default() if module is None else copy.deepcopy(module)
    return frozen.eval().requires_grad_(requires_grad=False)


def _check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise ConfigurationError(f"fdr must lie in (0, 1), got {fdr}.")
