"""Finding replicas: samples to hits to evidence to verdicts. No Lightning, and no files but the cache."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from relict_lightning.data import ImageBatch, ImageSource, open_images
from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    IndexStaleError,
    InvalidImageError,
    NotFittedError,
    RelictWarning,
)
from relict_lightning.evidence import compare, judge
from relict_lightning.functional import minimum_discoveries, mirror, shift
from relict_lightning.index import (
    Entry,
    EntryWriter,
    IntensityScale,
    Reference,
    Scan,
    build_reference,
    combine,
    digest_module,
    open_or_put_aside,
    read_reference,
    scan,
    subset,
    write_reference,
    writing,
)
from relict_lightning.results import DetectionResult, MatchedPair
from relict_lightning.retrieval import make_queries, nearest_of_union, retrieve
from relict_lightning.segmenters import IntensitySegmenter
from relict_lightning.verdicts import Control, Look, conclude, conclude_without_control

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Images: TypeAlias = Any
"""Whatever `relict_lightning.data.open_images` reads."""

# Displacements are looked for up to this share of the shortest side; anatomy that lies further off was not registered alike.
_SHIFT_SHARE = 0.1


@final
class ReplicaDetector:
    """Decides which samples are replicas of training images, and of which.

    A sample's nearest training images are retrieved by several views, compared voxel by voxel and label by label, and
    judged against the same measurement on held-out patients.

    Args:
        encoder: Images to embeddings; any module. None takes `GradientEncoder`, which needs no weights. The detector
            keeps a frozen copy.
        segmenter: Images to label maps; any module that returns label maps `[n, *spatial]` or scores
            `[n, labels, *spatial]`. None takes `IntensitySegmenter`. The detector keeps a frozen copy.
        top_k: Hits per view and mirroring, at least 2.
        fdr: False discovery rate of the verdicts, in (0, 1).
        transforms: Which alterations to look through: "default" searches mirror images along each axis and
            displacements of whole voxels up to a tenth of the shortest side, "none" compares images as they are.
        cache_dir: Folder in which what `fit` builds is kept and found again. None keeps it in memory. It holds
            patient data.
        progress: Whether `fit` shows progress bars.

    Raises:
        ConfigurationError: If an argument lies outside its range.

    Example:
        >>> images = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> detector = ReplicaDetector().fit(images[:6], images[6:])
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
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        if top_k < 2:
            raise ConfigurationError(f"top_k must be at least 2, so that a hit has something to be judged against; got {top_k}.")
        _check_fdr(fdr)
        if transforms not in ("default", "none"):
            raise ConfigurationError(f'transforms must be "default" or "none", got {transforms!r}.')
        self.top_k = top_k
        self.fdr = fdr
        self.transforms = transforms
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.progress = progress
        self.device = torch.device("cpu")
        self._encoder = _frozen(encoder, GradientEncoder)
        self._segmenter = _frozen(segmenter, IntensitySegmenter)
        self._segments_like_training = True
        self._segmenter_is_given = segmenter is not None
        self._training: Reference | None = None
        self._heldout: Reference | None = None
        self._control: Control | None = None
        self._scale: IntensityScale | None = None

    # Fitting ----------------------------------------------------------------------------------------------------

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
            training: An array or tensor `[m, c, *spatial]`, a map-style data set, a `DataLoader` (its data set is
                read), or a sequence of MONAI-style dictionaries (`image`, and optionally `id`, `group`).
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
            EmptyDataError: If the training set has fewer than two patients, or the held-out set fewer than two.
            InvalidImageError: If images are not finite, or not of one shape.
            NondeterministicDataError: If two reads of a training image differ.
        """
        source = open_images(training, role="training", segmentations=training_segmentations, groups=training_groups)
        contents = scan(source)
        self._scale = contents.scale
        given = training_segmentations is not None
        self._segments_like_training = not given or self._segmenter_is_given
        self._training = self._reference(source, contents, given=given)
        groups = len(set(self._training.groups))
        if groups < 2:
            raise EmptyDataError(
                f"The training set has {len(self._training)} image(s) of {groups} patient; at least 2 patients are "
                f"needed, because a likeness is judged against the other patients. Pass the whole training set."
            )
        self._heldout, self._control = None, None
        if heldout is None:
            return self
        if given and heldout_segmentations is None and not self._segmenter_is_given:
            raise ConfigurationError(
                "training_segmentations are given, and heldout_segmentations are not. Pass them too, or a segmenter "
                "that gives the same labels: the control must take the same road as the samples."
            )
        self._fit_control(
            open_images(heldout, role="held-out", segmentations=heldout_segmentations, groups=heldout_groups),
            contents,
            given=heldout_segmentations is not None,
        )
        return self

    def _reference(self, source: ImageSource, contents: Scan, *, given: bool) -> Reference:
        """Return the reference of one set; its label maps come from the data if `given`, else from the segmenter."""
        return build_reference(
            source,
            contents,
            scale=self._fitted_scale,
            encoder=self._encoder,
            segment=self._given_label_maps if given else self._segment_batch,
            segmenter_digest="given" if given else digest_module(self._segmenter),
            cache_dir=self.cache_dir,
            device=self.device,
            progress=self.progress,
        )

    def _fit_control(self, source: ImageSource, training: Scan, *, given: bool) -> None:
        contents = scan(source)
        if contents.shape != training.shape:
            raise InvalidImageError(
                f"Held-out images have shape {contents.shape}, training images {training.shape}. "
                f"Pass both through the same preprocessing."
            )
        heldout = self._reference(source, contents, given=given)
        kept = self._control_positions(heldout, contents, training)
        if len({heldout.groups[position] for position in kept}) < 2:
            raise EmptyDataError(
                f"The held-out set has {len(kept)} usable image(s); at least 2 patients that are not in the training "
                f"set are needed, and about 100 or more to make small p-values possible."
            )
        self._heldout = heldout if len(kept) == len(heldout) else subset(heldout, kept)
        _, first_of_group = np.unique(self._heldout.group_codes, return_index=True)
        self._control = self._cached_control(np.sort(first_of_group))

    def _control_positions(self, heldout: Reference, contents: Scan, training: Scan) -> list[int]:
        """Return which held-out images are of new patients; copies and patients of the training set are left out."""
        known_images, known_groups = set(training.item_digests), set(self._fitted_training.groups)
        kept = [
            position
            for position, (digest, group) in enumerate(zip(contents.item_digests, heldout.groups, strict=True))
            if digest not in known_images and group not in known_groups
        ]
        if len(kept) < len(heldout):
            warnings.warn(
                f"{len(heldout) - len(kept)} of {len(heldout)} held-out images are training images too, or belong to "
                f"training patients. They are left out of the control. Check how the sets were split.",
                RelictWarning,
                stacklevel=4,
            )
        return kept

    def _cached_control(self, positions: Array) -> Control:
        """Return the control's measurements, from the cache where it holds them."""
        training, heldout = self._fitted_training, self._heldout
        assert heldout is not None  # noqa: S101 - set by the caller
        directory = None
        if self.cache_dir is not None:
            parts = {"training": training.fingerprint, "heldout": heldout.fingerprint, "positions": positions.tolist()}
            settings = {"top_k": self.top_k, "transforms": self.transforms, "segmenter": digest_module(self._segmenter)}
            directory = self.cache_dir / combine({**parts, **settings})
            entry = open_or_put_aside(directory)
            if entry is not None:
                return _read_control(entry, prefix="")
        images = torch.from_numpy(heldout.volumes[positions].astype(np.float32))
        label_maps = torch.from_numpy(heldout.label_maps[positions].astype(np.int64))
        look = self._look(images, label_maps)
        control = Control(likeness=look.likeness.by_level, distance_to_training=look.distance_to_training)
        if directory is not None:
            with writing(directory) as writer:
                _write_control(control, writer, prefix="")
                writer.commit({"count": len(positions)})
        return control

    # Detection --------------------------------------------------------------------------------------------------

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
        """
        fdr = self.fdr if fdr is None else fdr
        _check_fdr(fdr)
        images, label_maps = self._read_samples(generated, generated_segmentations)
        look = self._look(images, label_maps)
        if self._control is None or self._heldout is None:
            return conclude_without_control(look, self._fitted_training, fdr=fdr)
        self._warn_if_nothing_can_be_found(len(images), fdr)
        union = nearest_of_union(look.queries, self._fitted_training, self._heldout)
        return conclude(
            look, self._fitted_training, control=self._control, union=union, heldout_groups=self.heldout_groups, fdr=fdr
        )

    def matched_pairs(self, generated: Images, result: DetectionResult, positions: Sequence[int]) -> list[MatchedPair]:
        """Return samples beside the training images that they match, moved onto them, for people to look at.

        Args:
            generated: The samples that `result` was made from.
            result: What `detect` returned.
            positions: Which samples.
        """
        images, _ = self._read_samples(generated, None, segment=False)
        pairs = []
        for position in positions:
            verdict = result.verdicts[position]
            moved = mirror(images[position : position + 1], verdict.transform.mirrored_axes)
            if any(verdict.transform.shift_voxels):
                moved = shift(moved, torch.tensor([verdict.transform.shift_voxels]))
            training = torch.from_numpy(self._fitted_training.volumes[verdict.match].astype(np.float32))
            pairs.append(MatchedPair(generated=moved[0], training=training, verdict=verdict))
        return pairs

    def _read_samples(
        self, generated: Images, segmentations: Any | None, *, segment: bool = True
    ) -> tuple[Float[Tensor, "n c *spatial"], Tensor]:
        """Return samples on the unit scale, and their label maps."""
        training = self._fitted_training
        source = open_images(generated, role="generated", segmentations=segmentations)
        batches = list(source.batches(64))
        images = self._fitted_scale.apply(torch.cat([batch.images for batch in batches]))
        if tuple(images.shape[1:]) != training.image_shape:
            raise InvalidImageError(
                f"Samples have shape {tuple(images.shape[1:])}, training images {training.image_shape}. "
                f"Decode, crop or resample the samples to the training images' grid."
            )
        if not segment:
            return images, torch.empty(0)
        if segmentations is not None:
            return images, torch.cat([self._given_label_maps(batch) for batch in batches])
        if not self._segments_like_training:
            raise ConfigurationError(
                "The detector was fitted with training_segmentations and has no segmenter, so samples need label maps "
                "too. Pass generated_segmentations, or construct the detector with a segmenter of the same labels."
            )
        return images, torch.cat([self._segment(part) for part in images.split(64)])

    def _look(self, images: Tensor, label_maps: Tensor) -> Look:
        """Measure images against the training set: the one road that samples and control take."""
        training = self._fitted_training
        spatial = images.shape[2:]
        aligned = self.transforms == "default"
        mirrors = ((), *((axis,) for axis in range(len(spatial)))) if aligned else ((),)
        max_shift = int(_SHIFT_SHARE * min(spatial)) if aligned else 0
        queries = make_queries(images, encoder=self._encoder, mirrors=mirrors, device=self.device)
        hits = retrieve(queries, training, top_k=self.top_k)
        evidence = compare(
            images, label_maps, hits, mirrors=mirrors, max_shift=max_shift, reference=training, device=self.device
        )
        return Look(queries=queries, evidence=evidence, likeness=judge(evidence, training, count=len(images)))

    def _warn_if_nothing_can_be_found(self, num_samples: int, fdr: float) -> None:
        if minimum_discoveries(self.heldout_groups, num_samples, fdr=fdr) > num_samples:
            warnings.warn(
                f"With {self.heldout_groups} held-out patients no sample can be called a replica at a false discovery "
                f"rate of {fdr}, not even if all {num_samples} are copies. Add held-out patients "
                f"(at least {int(np.ceil(1 / fdr)) - 1}) or raise fdr.",
                RelictWarning,
                stacklevel=3,
            )

    # State ------------------------------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` or `load` was called."""
        return self._training is not None

    @property
    def has_control(self) -> bool:
        """Whether held-out images were given, so that rates and p-values can be."""
        return self._control is not None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `[c, *spatial]` that samples must have."""
        return self._fitted_training.image_shape

    @property
    def training_groups(self) -> int:
        """Number of training patients."""
        return len(set(self._fitted_training.groups))

    @property
    def heldout_groups(self) -> int:
        """Number of held-out patients in the control; 0 without one."""
        return 0 if self._heldout is None else len(set(self._heldout.groups))

    @property
    def from_cache(self) -> bool:
        """Whether the reference was found in the cache rather than built."""
        return self._fitted_training.from_cache

    @property
    def build_seconds(self) -> float:
        """Seconds that building the references took when they were built, now or earlier."""
        return self._fitted_training.seconds + (0.0 if self._heldout is None else self._heldout.seconds)

    @property
    def _fitted_training(self) -> Reference:
        if self._training is None:
            raise NotFittedError("This detector knows no training images yet. Call `fit(training, heldout)` or `load`.")
        return self._training

    @property
    def _fitted_scale(self) -> IntensityScale:
        if self._scale is None:
            raise NotFittedError("This detector knows no training images yet. Call `fit(training, heldout)` or `load`.")
        return self._scale

    def to(self, device: torch.device | str) -> "ReplicaDetector":
        """Move encoder, segmenter and comparisons to a device; return the detector."""
        self.device = torch.device(device)
        self._encoder.to(self.device)
        self._segmenter.to(self.device)
        return self

    def save(self, path: str | Path) -> Path:
        """Write the fitted detector into a new folder, which holds patient data, and return its path.

        The encoder and the segmenter are not written; `load` takes them again and checks that they are the same.

        Raises:
            ConfigurationError: If the folder exists.
        """
        path = Path(path)
        training = self._fitted_training
        if path.exists():
            raise ConfigurationError(f"{path} exists already. Choose another folder, or delete it first.")
        with writing(path) as writer:
            write_reference(training, writer, prefix="training_")
            if self._heldout is not None and self._control is not None:
                write_reference(self._heldout, writer, prefix="heldout_")
                _write_control(self._control, writer, prefix="control_")
            settings = {
                "top_k": self.top_k,
                "fdr": self.fdr,
                "transforms": self.transforms,
                "scale": asdict(self._fitted_scale),
                "segments_like_training": self._segments_like_training,
                "has_control": self.has_control,
                "encoder": digest_module(self._encoder),
                "segmenter": digest_module(self._segmenter),
            }
            writer.commit({"detector": settings})
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
        saved = entry.manifest.get("detector")
        if saved is None:
            raise IndexStaleError(f"{path} holds an index, not a saved detector. Pass the folder given to `save`.")
        detector = cls(
            encoder, segmenter, top_k=saved["top_k"], fdr=saved["fdr"], transforms=saved["transforms"]
        )  # fmt: skip
        for name, module in (("encoder", detector._encoder), ("segmenter", detector._segmenter)):
            if digest_module(module) != saved[name]:
                raise IndexStaleError(
                    f"The detector in {path} was fitted with another {name} than the {type(module).__name__} given now "
                    f"(class, configuration or weights differ). Pass `load(..., {name}=...)` the same one, or fit again."
                )
        detector._scale = IntensityScale(**saved["scale"])
        detector._segments_like_training = saved["segments_like_training"]
        detector._training = read_reference(entry, prefix="training_")
        if saved["has_control"]:
            detector._heldout = read_reference(entry, prefix="heldout_")
            detector._control = _read_control(entry, prefix="control_")
        return detector

    # Label maps -------------------------------------------------------------------------------------------------

    def _segment_batch(self, batch: ImageBatch) -> Tensor:
        return self._segment(batch.images)

    @torch.no_grad()
    def _segment(self, images: Float[Tensor, "n c *spatial"]) -> Tensor:
        """Return the segmenter's label maps `[n, *spatial]`; scores per label become the best label."""
        output = self._segmenter(images.to(self.device))
        spatial = tuple(images.shape[2:])
        if isinstance(output, Tensor) and tuple(output.shape) == (len(images), *spatial):
            label_maps = output
        elif isinstance(output, Tensor) and tuple(output.shape[2:]) == spatial and output.shape[1] > 1:
            label_maps = output.argmax(1)
        else:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InvalidImageError(
                f"Segmenter {type(self._segmenter).__name__} must return label maps {(len(images), *spatial)} or scores "
                f"per label {(len(images), 'labels', *spatial)}; got {found}."
            )
        return label_maps.long().cpu()

    @staticmethod
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


def _write_control(control: Control, writer: EntryWriter, *, prefix: str) -> None:
    for name, values in asdict(control).items():
        writer.array(f"{prefix}{name}", values.shape, values.dtype.type)[:] = values


def _read_control(entry: Entry, *, prefix: str) -> Control:
    return Control(
        likeness=np.array(entry.array(f"{prefix}likeness")),
        distance_to_training=np.array(entry.array(f"{prefix}distance_to_training")),
    )
