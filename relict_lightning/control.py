"""The control: held-out patients, measured as if they were samples, so that one knows how alike a new patient is."""

import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from relict_lightning.calibration import Rule
from relict_lightning.errors import EmptyDataError, RelictWarning
from relict_lightning.index import Entry, EntryWriter, Reference, subset
from relict_lightning.results import RateEstimate
from relict_lightning.self_test import SelfTest, split_false_positive_rate

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# A sample counts as leaning beyond this share of new patients. It is no error rate: chance is taken off the count, and
# whether samples lean is tested at levels of its own. With one in ten, samples of a generator that had not begun to
# copy counted, and checkpoints that are clean were passed over.
_UNUSUAL = 0.05


@dataclass(frozen=True, kw_only=True)
class Control:
    """What held-out patients look like on the same road, one image each.

    Attributes:
        likeness: Copy-likeness by each measure, `[h, c]`.
        leaks: Positions of held-out images whose patients were left out, because they resemble training images as only
            copies do.
        rule: How the measures are put together.
        self_test: What is found of copies of training images that were planted; None where images are too small.
        distance_to_training: Euclidean distance of unit embeddings to the nearest hit, `[h]`.
        union_likeness: Copy-likeness among training and held-out images together, in each of two views, `[2, h]`.
        seconds: How long it took to measure.
    """

    likeness: Array
    leaks: tuple[int, ...]
    rule: Rule
    self_test: SelfTest | None
    distance_to_training: Array
    union_likeness: Array
    seconds: float

    @property
    def usual_union_likeness(self) -> Array:
        """What one new patient in twenty exceeds in one view or the other, at most, `[2]`."""
        share = 1 - _UNUSUAL / len(self.union_likeness)
        usual: Array = np.quantile(self.union_likeness, share, axis=1, method="higher")
        return usual

    def false_positive_rate(self, fdr: float) -> RateEstimate:
        """Return the detector's self-test: the share of one half of the control called replicas against the other.

        Both halves are tried, so every held-out patient is tested once; by construction none is a copy.
        """
        return split_false_positive_rate(self.likeness, self.rule, fdr=fdr)

    def at(self, fdr: float) -> "Control":
        """Return the same, its self-test told at a false discovery rate, which may be another than it was made at."""
        if self.self_test is None:
            return self
        rate = self.false_positive_rate(fdr)
        return replace(self, self_test=replace(self.self_test, fdr=fdr, heldout_false_positive_rate=rate))


def merge_copies(reference: Reference) -> Reference:
    """Return a set in which bitwise copies of one image belong to one group, with a warning if there were any.

    A data set that repeats its images, or names one patient twice, would otherwise be a set of more patients than it
    has; and a copy of a repeated image would not stand out, because its nearest others would be the repetitions.

    """
    group_of: dict[str, str] = {}
    merged_into: dict[str, str] = {}

    def root(group: str) -> str:
        while (parent := merged_into.get(group, group)) != group:
            group = parent
        return group

    for digest, group in zip(reference.item_digests, reference.groups, strict=True):
        first = root(group_of.setdefault(digest, group))
        if first != root(group):
            merged_into[root(group)] = first
    if not merged_into:
        return reference
    warnings.warn(
        f"{len(merged_into)} groups hold an image that another group holds too, bit by bit. They are taken for one "
        f"patient. Pass each image once, and every patient's images with one `group`.",
        RelictWarning,
        stacklevel=3,
    )
    groups = tuple(root(group) for group in reference.groups)
    return replace(reference, groups=groups, group_codes=np.unique(groups, return_inverse=True)[1])


def new_patients_only(
    heldout: Reference, *, known_groups: Collection[str], known_digests: Collection[str]
) -> Reference:
    """Return the held-out images that are no training image and of no training patient, copies merged.

    A leak would make copies look ordinary, because the control would hold some. Patients are compared by the names that
    the data give, before copies are merged under one of them.

    Args:
        heldout: The held-out images.
        known_groups: Names of the training patients.
        known_digests: Hashes of the training images.

    Raises:
        EmptyDataError: If fewer than two patients remain.
    """
    items = list(zip(heldout.item_digests, heldout.groups, strict=True))
    known_images = {*known_digests, *(digest for digest, group in items if group in known_groups)}
    kept = [position for position, (digest, _) in enumerate(items) if digest not in known_images]
    remaining = heldout if len(kept) == len(heldout) else subset(heldout, kept)
    merged = merge_copies(remaining)
    if len(set(merged.groups)) < 2:
        raise EmptyDataError(
            f"The held-out set has {len(kept)} usable image(s) among {len(heldout)}; at least 2 patients that are not "
            f"in the training set are needed, and about 100 or more to make small p-values possible."
        )
    if len(kept) < len(heldout):
        warnings.warn(
            f"{len(heldout) - len(kept)} of {len(heldout)} held-out images are training images too, or belong to "
            f"training patients. They are left out of the control. Check how the sets were split.",
            RelictWarning,
            stacklevel=4,
        )
    return merged


def without_patients(heldout: Reference, positions: Collection[int]) -> Reference:
    """Return the held-out images of all patients but those at some positions."""
    groups = {heldout.groups[position] for position in positions}
    kept = [position for position, group in enumerate(heldout.groups) if group not in groups]
    return heldout if len(kept) == len(heldout) else subset(heldout, kept)


def one_image_per_group(heldout: Reference) -> Array:
    """Return the position of each group's first image, in order."""
    _, first_of_group = np.unique(heldout.group_codes, return_index=True)
    return np.sort(first_of_group)


def write_control(control: Control, writer: EntryWriter, *, prefix: str) -> None:
    """Write a control into a folder, its files' names starting with `prefix`."""
    for name in ("likeness", "distance_to_training", "union_likeness"):
        writer.array(f"{prefix}{name}", getattr(control, name))
    rule = asdict(control.rule)
    self_test = None if control.self_test is None else control.self_test.to_dict()
    about = {"seconds": control.seconds, "leaks": control.leaks, "rule": rule, "self_test": self_test}
    writer.table(f"{prefix}about", about)


def read_control(entry: Entry, *, prefix: str) -> Control:
    """Return the control that `write_control` put into a folder."""
    about = entry.table(f"{prefix}about")
    return Control(
        likeness=np.array(entry.array(f"{prefix}likeness")),
        distance_to_training=np.array(entry.array(f"{prefix}distance_to_training")),
        union_likeness=np.array(entry.array(f"{prefix}union_likeness")),
        seconds=float(about["seconds"]),
        leaks=tuple(about["leaks"]),
        rule=Rule(
            columns=tuple(about["rule"]["columns"]),
            led=bool(about["rule"]["led"]),
            weights=tuple(about["rule"]["weights"]),
        ),
        self_test=None if about["self_test"] is None else SelfTest.from_dict(about["self_test"]),
    )
