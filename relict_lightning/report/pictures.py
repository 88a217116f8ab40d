"""Matched pairs as pictures: windowed, cut and encoded for a page.

Conventions: every image is windowed by its own 1st to 99.5th percentile of what is shown, because a copy that was
made darker, brighter or flatter is still a copy, and must be seen as one. The difference is taken between the windowed
images, so 1 is the full window, and its colour scale always runs from 0 to `DIFFERENCE_SCALE`. A 2-D image is shown as
it is stored. A volume is shown as its three middle slices, the first remaining axis to the right and the second
upwards, which sets a NIfTI volume in RAS orientation upright. One channel is grey, three are RGB; of any other number
the first is shown.
"""

import base64
import io
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from relict_lightning.errors import InvalidImageError
from relict_lightning.results import MatchedPair

DIFFERENCE_SCALE = 0.5

_WINDOW_PERCENTILES = (1.0, 99.5)
_SHORTEST_SIDE = 256
_LONGEST_SIDE = 448


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG for an `img` element.

    Attributes:
        source: `data:` address that holds the PNG.
        width: Width in pixels.
        height: Height in pixels.
    """

    source: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class PairPictures:
    """What a page shows of a matched pair: one picture per view in 2-D, three in 3-D.

    Attributes:
        generated: The sample.
        training: The training image.
        difference: Absolute difference of both, in colour.
        mean_difference: Mean absolute difference of the windowed images as shown, in [0, 1].
        channels: Number of channels of the images.
        views: Name of each view; empty strings in 2-D.
    """

    generated: tuple[Picture, ...]
    training: tuple[Picture, ...]
    difference: tuple[Picture, ...]
    mean_difference: float
    channels: int
    views: tuple[str, ...]


def pair_pictures(pair: MatchedPair, *, position: int) -> PairPictures:
    """Return the pictures of a matched pair.

    Args:
        pair: Images `[c, *spatial]` of one shape, tensors or arrays, 2-D or 3-D.
        position: Position of the pair, for messages.

    Returns:
        The pictures of sample, training image and difference, view by view.

    Raises:
        InvalidImageError: If the images are not 2-D or 3-D, differ in shape, or hold values that are not finite.

    Example:
        >>> from relict_lightning.results import Transform, Verdict
        >>> verdict = Verdict(score=4.0, p_value=0.01, is_replica=True, match=7, match_id="a", match_group="a",
        ...                   transform=Transform(), evidence={})
        >>> image = torch.rand(1, 8, 8)
        >>> pair_pictures(MatchedPair(generated=image, training=image, verdict=verdict), position=0).mean_difference
        0.0
    """
    generated = _checked_image(pair.generated, name="generated", position=position)
    training = _checked_image(pair.training, name="training", position=position)
    if generated.shape != training.shape:
        raise InvalidImageError(
            f"Both images of pair {position} must have one shape [c, *spatial], but the generated image has "
            f"{generated.shape} and the training image {training.shape}. Resample the one onto the other."
        )
    generated_views = _windowed(_views(generated))
    training_views = _windowed(_views(training))
    differences = [
        np.abs(left - right).mean(axis=-1) for left, right in zip(generated_views, training_views, strict=True)
    ]
    colours = mpl.colormaps["magma"]
    return PairPictures(
        generated=tuple(_png(_to_bytes(_resized(view))) for view in generated_views),
        training=tuple(_png(_to_bytes(_resized(view))) for view in training_views),
        difference=tuple(
            _png(_to_bytes(colours(_resized(difference[..., None])[..., 0] / DIFFERENCE_SCALE)[..., :3]))
            for difference in differences
        ),
        mean_difference=float(np.mean([difference.mean() for difference in differences])),
        channels=generated.shape[0],
        views=("",) if generated.ndim == 3 else tuple(f"middle slice of axis {axis}" for axis in range(3)),
    )


def pair_strip(pair: MatchedPair) -> UInt8[np.ndarray, "_h _w 3"]:
    """Return one RGB picture of a pair: the sample on the left, the training image on the right, view below view.

    Args:
        pair: Images `[c, *spatial]` of one shape, tensors or arrays, 2-D or 3-D.

    Raises:
        InvalidImageError: If the images are not 2-D or 3-D, or hold values that are not finite.
    """
    columns = []
    for image, name in ((pair.generated, "generated"), (pair.training, "training")):
        views = _windowed(_views(_checked_image(image, name=name, position=0)))
        pictures = [_to_bytes(_resized(view)) for view in views]
        width = max(picture.shape[1] for picture in pictures)
        padded = [np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))) for picture in pictures]
        columns.append(np.concatenate(padded))
    strip = np.concatenate(columns, axis=1)
    return np.broadcast_to(strip, (*strip.shape[:2], 3)).copy()


def _checked_image(image: object, *, name: str, position: int) -> Float[np.ndarray, "c *spatial"]:
    """Return an image as an array on the CPU, or say what is wrong with it."""
    if isinstance(image, torch.Tensor):
        array = image.detach().to(device="cpu", dtype=torch.float32).numpy()
    else:
        array = np.asarray(image, dtype=np.float32)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InvalidImageError(
            f"The {name} image of pair {position} must be [c, h, w] or [c, d, h, w] without an empty axis, "
            f"but has shape {array.shape}."
        )
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InvalidImageError(
            f"The {name} image of pair {position} must be finite, but {count} of its {array.size} values are NaN or "
            f"infinite. Check the sampler, or the file that the image was read from."
        )
    return array


def _views(image: Float[np.ndarray, "c *spatial"]) -> list[Float[np.ndarray, "_h _w _shown"]]:
    """Return the planes to show, channels last, one of a 2-D image and three of a volume."""
    shown = image if image.shape[0] == 3 else image[:1]
    if image.ndim == 3:
        return [np.moveaxis(shown, 0, -1)]
    planes = [np.take(shown, shown.shape[axis] // 2, axis=axis) for axis in (1, 2, 3)]
    return [np.rot90(np.moveaxis(plane, 0, -1)) for plane in planes]


def _windowed(views: list[Float[np.ndarray, "_h _w _shown"]]) -> list[Float[np.ndarray, "_h _w _shown"]]:
    """Map the percentile window of all views together onto [0, 1]."""
    values = np.concatenate([view.ravel() for view in views])
    low, high = np.percentile(values, _WINDOW_PERCENTILES)
    if high <= low:
        # A small bright structure in a large background lies outside the percentiles; its range still shows it.
        low, high = values.min(), values.max()
    span = high - low if high > low else 1.0
    return [np.clip((view - low) / span, 0, 1).astype(np.float32) for view in views]


def _resized(view: Float[np.ndarray, "_h _w _shown"]) -> Float[np.ndarray, "_h2 _w2 _shown"]:
    """Bring the longer side between the two sizes at which a page shows a picture well."""
    height, width = view.shape[:2]
    factor = min(max(_SHORTEST_SIDE, height, width), _LONGEST_SIDE) / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    planes = [Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)) for plane in np.moveaxis(view, -1, 0)]
    resized = np.stack(
        [np.asarray(plane.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) for plane in planes], axis=-1
    )
    # Lanczos overshoots at edges.
    np.clip(resized, 0, 1, out=resized)
    return resized


def _to_bytes(view: Float[np.ndarray, "_h _w _shown"]) -> UInt8[np.ndarray, "_h _w _shown"]:
    """Round [0, 1] to the 256 grey levels of a PNG."""
    return np.asarray(np.rint(view * 255), dtype=np.uint8)


def _png(view: UInt8[np.ndarray, "_h _w _shown"]) -> Picture:
    """Encode a plane as a PNG without any metadata."""
    stream = io.BytesIO()
    Image.fromarray(view[..., 0] if view.shape[-1] == 1 else view).save(stream, format="PNG")
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(source=f"data:image/png;base64,{encoded}", width=view.shape[1], height=view.shape[0])
