"""References of a few small images and comparisons with them, as tests of several layers need them."""

import torch

from relict_lightning.comparison import compare_hits
from relict_lightning.data import open_images
from relict_lightning.encoders import GradientEncoder
from relict_lightning.index import BuildOptions, IntensityScale, Pipeline, build_reference, digest_module
from relict_lightning.retrieval import make_queries, retrieve
from relict_lightning.segmenters import IntensitySegmenter, label_maps
from relict_lightning.usual import describe_usual

CPU = torch.device("cpu")
UNIT = IntensityScale(low=0.0, high=1.0)


def by_intensity(images):
    return label_maps(IntensitySegmenter(), images, device=CPU)


def above_half(images):
    return (images[:, 0] > 0.5).long()


def build(
    images,
    *,
    role="training",
    groups=None,
    segmentations=None,
    encoder=None,
    segment=by_intensity,
    segmenter="intensity",
    scale=UNIT,
    store="float16",
    **options,
):
    """Returns the reference of images; the scale is [0, 1] unless another or None, the images' own, is given."""
    encoder = encoder or GradientEncoder()
    pipeline = Pipeline(
        given_scale=scale,
        encoder=encoder,
        encoder_digest=digest_module(encoder),
        segment=None if segmentations is not None else segment,
        segmenter_digest="given" if segmentations is not None else segmenter,
        store=store,
        device=CPU,
    )
    source = open_images(images, role=role, groups=groups, segmentations=segmentations)
    return build_reference(source, pipeline, BuildOptions(**options))


def retrieved(samples, maps, reference, *, encoder, mirrors, top_k):
    """Returns queries and hits of samples among the images of a reference, whose usual is described for it."""
    usual = describe_usual(reference)
    queries = make_queries(samples, maps, encoder=encoder, usual=usual, mirrors=mirrors, device=CPU)
    return queries, retrieve(queries, reference, usual, top_k=top_k)


def compared(samples, maps, hits, reference, *, mirrors, align=True):
    """Returns the measures of hits among the images of a reference, what is usual in which is described for it."""
    return compare_hits(
        samples,
        maps,
        hits,
        mirrors=mirrors,
        align=align,
        reference=reference,
        usual=describe_usual(reference),
        device=CPU,
    )
