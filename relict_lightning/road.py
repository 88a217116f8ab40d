"""The one road that samples, held-out patients and planted copies take, from images to what is measured of them.

An error rate holds for samples only as far as the control was measured as they are. So nothing here knows which of the
three it measures.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from relict_lightning.alterations import SMALLEST_SIDE
from relict_lightning.calibration import Rule, choose_rule
from relict_lightning.comparison import compare_hits
from relict_lightning.control import Control, one_image_per_group, without_patients
from relict_lightning.errors import EmptyDataError
from relict_lightning.evidence import Evidence, Look, judge
from relict_lightning.index import Reference
from relict_lightning.look_matching import match_look
from relict_lightning.planting import PlantedCopies, plant_copies
from relict_lightning.retrieval import make_queries, nearest_of_union, retrieve
from relict_lightning.segmenters import label_maps
from relict_lightning.self_test import SelfTest, evaluate_self_test
from relict_lightning.usual import Usual

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# A held-out image three times as near to a training patient as the next patients are, in voxels and in features, is a
# leak. New scans of simulated patients are five times as near. Of 1,000 patients who were none, one was twice as near;
# to leave such a one out would make the control too easy to exceed.
_LEAK = math.log(3)
# A control needs so many patients.
_FEWEST = 2
# Copies planted per alteration to choose a rule; one in ten of all, which `choose_rule` lets go, is then more than one.
_PLANTED = 2


@final
@dataclass(frozen=True, kw_only=True)
class Road:
    """From images to what is measured of them.

    Attributes:
        training: The training images.
        usual: What is usual in them.
        encoder: Images to embeddings.
        segmenter: Images to label maps.
        brings_label_maps: Whether images bring label maps of their own.
        shows_structures: Whether label maps show structures, and not classes of intensity.
        align: Whether to look through mirrorings and movements.
        top_k: Hits per view.
        device: Where to compute.
    """

    training: Reference
    usual: Usual
    encoder: nn.Module
    segmenter: nn.Module
    brings_label_maps: bool
    shows_structures: bool
    align: bool
    top_k: int
    device: torch.device

    def look(self, images: Float[Tensor, "n c *spatial"], maps: Int[Tensor, "n *spatial"]) -> Look:
        """Return what is measured of images on the training set's scale; all processes call this alike.

        Args:
            images: The images.
            maps: Their label maps.
        """
        spatial = tuple(images.shape[2:])
        mirrors = ((), *((axis,) for axis in range(len(spatial)))) if self.align else ((),)
        queries = self.training.processes.together(
            lambda: make_queries(
                images, maps, encoder=self.encoder, usual=self.usual, mirrors=mirrors, device=self.device
            ),
            doing="Embedding the samples",
        )
        hits = retrieve(queries, self.training, self.usual, top_k=self.top_k)
        compared = compare_hits(
            images,
            maps,
            hits,
            mirrors=mirrors,
            align=self.align,
            reference=self.training,
            usual=self.usual,
            device=self.device,
        )
        evidence = Evidence(
            hits=hits,
            mirrors=mirrors,
            compared=compared,
            image_sides=spatial,
            has_label_maps=self.shows_structures,
        )
        return Look(queries=queries, evidence=evidence, likeness=judge(evidence, self.training, count=len(images)))

    def measure_control(self, heldout: Reference, *, fdr: float) -> Control:
        """Return what is measured of one image of each held-out patient, and the rule that planted copies choose.

        Images that resemble training images as only copies and new scans of the same patient do are left out: the
        control would take copies for usual.

        Args:
            heldout: The held-out images, none known to be of a training patient.
            fdr: False discovery rate that the self-test tells the false-positive rate at.

        Raises:
            EmptyDataError: If fewer than two patients are left.
        """
        started = time.perf_counter()
        positions = one_image_per_group(heldout)
        images = torch.from_numpy(heldout.fetch_volumes(positions))
        look = self.look(images, torch.from_numpy(heldout.fetch_label_maps(positions)))
        is_leak = _are_leaks(look)
        if (~is_leak).sum() < _FEWEST:
            raise EmptyDataError(
                f"Of {len(is_leak)} held-out patients {int(is_leak.sum())} resemble training patients as only copies "
                f"or new scans of a patient do; at least {_FEWEST} others are needed. Check how the sets were split."
            )
        leaks = tuple(int(position) for position in positions[is_leak])
        likeness, rule, self_test = look.likeness.by_measure[~is_leak], Rule(columns=look.likeness.columns), None
        if min(self.training.image_shape[1:]) >= SMALLEST_SIDE:
            planted = self._plant(without_patients(heldout, leaks), copies_per_alteration=_PLANTED, seed=0)
            of_planted = self._look_at_altered(planted.images, planted.label_maps)
            rule = choose_rule(of_planted.likeness.by_measure, likeness, rule.columns, kinds=planted.alteration)
            self_test = self._evaluated(planted, of_planted, likeness, rule, fdr=fdr)
        union = nearest_of_union(look.queries, self.training, heldout, own=heldout.group_codes[positions])
        return Control(
            likeness=likeness,
            distance_to_training=look.distance_to_training[~is_leak],
            union_likeness=union.likeness[:, ~is_leak],
            leaks=leaks,
            rule=rule,
            self_test=self_test,
            seconds=time.perf_counter() - started,
        )

    def look_matched_likeness(self, heldout: Reference, samples: Float[Tensor, "n c *spatial"]) -> Array:
        """Return the copy-likeness of one image of each held-out patient, given the look of samples, `[h, c]`.

        Args:
            heldout: The held-out images, without leaks.
            samples: The samples, on the training set's scale.
        """
        positions = one_image_per_group(heldout)
        images = match_look(torch.from_numpy(heldout.fetch_volumes(positions)), samples)
        maps = torch.from_numpy(heldout.fetch_label_maps(positions))
        return self._look_at_altered(images, maps).likeness.by_measure

    def test_itself(
        self,
        heldout: Reference,
        control: Control,
        *,
        fdr: float,
        copies_per_alteration: int = _PLANTED,
        seed: int = 0,
    ) -> SelfTest:
        """Return which of newly planted copies are found.

        Args:
            heldout: The held-out images, which transplants are put into.
            control: What was measured of them.
            fdr: False discovery rate that the false-positive rate is told at.
            copies_per_alteration: Copies per alteration, at least 1; as many as at a fit by default.
            seed: Seed of the choice of patients and strengths; that of a fit by default.

        Raises:
            ConfigurationError: If `copies_per_alteration` is below 1.
        """
        planted = self._plant(heldout, copies_per_alteration=copies_per_alteration, seed=seed)
        look = self._look_at_altered(planted.images, planted.label_maps)
        return self._evaluated(planted, look, control.likeness, control.rule, fdr=fdr)

    def _plant(self, heldout: Reference, *, copies_per_alteration: int, seed: int) -> PlantedCopies:
        return self.training.processes.together(
            lambda: plant_copies(self.training, heldout, copies_per_alteration=copies_per_alteration, seed=seed),
            doing="Planting copies",
        )

    def _look_at_altered(self, images: Tensor, maps: Tensor) -> Look:
        """Return what is measured of images that were made of others, with the label maps that were made with them."""
        # A segmenter segments altered images anew, as it does samples.
        return self.look(
            images, maps if self.brings_label_maps else label_maps(self.segmenter, images, device=self.device)
        )

    def _evaluated(
        self, planted: PlantedCopies, look: Look, control_likeness: Array, rule: Rule, *, fdr: float
    ) -> SelfTest:
        codes, hits = self.training.group_codes, look.evidence.hits
        is_source = codes[hits.training] == codes[planted.source][hits.sample]
        return evaluate_self_test(
            planted,
            likeness=look.likeness.by_measure,
            is_retrieved=np.isin(np.arange(len(planted)), hits.sample[is_source]),
            matched_groups=codes[look.evidence.training[look.likeness.best_pairs(control=control_likeness, rule=rule)]],
            source_groups=codes[planted.source],
            control_likeness=control_likeness,
            rule=rule,
            fdr=fdr,
        )


def _are_leaks(look: Look) -> Array:
    """Return which images resemble a training patient as only copies and new scans of the patient do, `[n]`."""
    columns = np.array(look.likeness.columns)
    near = [look.likeness.by_measure[:, columns == level].max(axis=1) for level in ("voxel", "feature")]
    is_leak: Array = np.min(near, axis=0) >= _LEAK
    return is_leak
