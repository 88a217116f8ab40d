import pytest
import torch
from torch import nn

from relict_lightning.errors import InvalidImageError
from relict_lightning.segmenters import label_maps

CPU = torch.device("cpu")


def _images(count, *spatial):
    return torch.rand((count, 1, *spatial), generator=torch.Generator().manual_seed(0))


class Output(nn.Module):
    """Returns what a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize("spatial", [(8, 8), (6, 5, 4)])
@pytest.mark.parametrize(
    "segmenter",
    [
        Output(lambda images: (images[:, 0] > 0.5).long()),
        Output(lambda images: (images[:, 0] > 0.5).float()),
        Output(lambda images: torch.cat([1 - images, images], 1)),
    ],
    ids=["labels", "labels as floats", "scores"],
)
def test_label_maps_and_scores_give_the_same_labels(segmenter, spatial):
    images = _images(3, *spatial)

    labels = label_maps(segmenter, images, device=CPU)

    assert labels.dtype == torch.int64
    assert torch.equal(labels, (images[:, 0] > 0.5).long())


def test_a_convolution_is_a_segmenter():
    images = _images(2, 8, 8)
    convolution = nn.Conv2d(1, 3, 1)

    labels = label_maps(convolution, images, device=CPU)

    assert torch.equal(labels, convolution(images).argmax(1))
    assert not labels.requires_grad


def test_images_pass_in_batches_and_keep_their_order():
    sizes = []

    def segment(images):
        sizes.append(len(images))
        return (10 * images[:, 0]).long()

    images = _images(150, 4, 4)

    assert torch.equal(label_maps(Output(segment), images, device=CPU), (10 * images[:, 0]).long())
    assert sizes == [64, 64, 22]


def test_large_volumes_pass_in_smaller_batches():
    sizes = []

    def segment(images):
        sizes.append(len(images))
        return images[:, 0].long()

    label_maps(Output(segment), torch.zeros(3, 1, 101, 102, 103), device=CPU)

    assert sizes == [1, 1, 1]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda images: images[:, 0, :4], r"\(3, 4, 8\)"),
        (lambda images: images, r"\(3, 1, 8, 8\)"),
        (lambda images: images[..., :4].repeat(1, 2, 1, 1), r"\(3, 2, 8, 4\)"),
        (lambda images: [images], "list"),
    ],
    ids=["too small", "one score", "small scores", "list"],
)
def test_other_outputs_are_refused_with_both_shapes(function, found):
    expected = r"Output must return label maps \(3, 8, 8\) or scores per label \(3, 'labels', 8, 8\); got "

    with pytest.raises(InvalidImageError, match=expected + found):
        label_maps(Output(function), _images(3, 8, 8), device=CPU)
