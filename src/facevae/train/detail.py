"""Losses on detail that the discriminator overlooks: fixed patterns, coloured specks, and grain."""

import torch
from torch import Tensor
from torch.nn import functional

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns to a neighbour
WINDOW = 8  # pixels
SMALLEST_VARIANCE = 1e-5  # of visible detail: less than one of 256 levels


def pattern_error(difference: Tensor) -> Tensor:
    """The square of the fine pattern that N differences (N, channel, height, width) share, mean over values, times N.

    The pattern is their mean without its local average. The discriminator, which does not know positions, takes it for
    texture. Differences that share nothing add only as much as the square of a single one, however many there are.
    """
    pattern = _fine(difference.mean(0), size=3)
    return len(difference) * pattern.square().mean()


def colour_error(difference: Tensor) -> Tensor:
    """The square of the fine detail in the colours of differences (N, channel, height, width), mean over values.

    A colour is a channel without the mean of all channels. Photographs have little detail in colours, since JPEG halves
    their resolution. It is too faint for the discriminator, which overlooks coloured specks.
    """
    return _fine(difference - difference.mean(1, keepdim=True), size=5).square().mean()


def grain_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """How much more detail decoded images (batch, channel, height, width) have than their originals, place by place.

    Mean over images, places, directions, and two scales. The discriminator asks for detail without knowing where the
    original has it. Less detail than the original's costs nothing.
    """
    excesses = []
    for scale in (1, 2):
        ours, theirs = (_local_detail(functional.avg_pool2d(pixels, scale).mean(1)) for pixels in (decoded, images))
        excesses.append(functional.relu(ours - theirs).mean())
    return torch.stack(excesses).mean()


def _fine(maps: Tensor, *, size: int) -> Tensor:
    """Maps (..., channel, height, width) without their average over squares of `size` x `size`."""
    return maps - functional.avg_pool2d(maps, size, stride=1, padding=size // 2, count_include_pad=False)


def _local_detail(grey: Tensor) -> Tensor:
    """The root mean square of second differences of `grey` (batch, height, width) in overlapping squares.

    Shape (batch, direction, row, column).
    """
    rows, columns = (size - 2 for size in grey.shape[1:])
    centre = grey[:, 1:-1, 1:-1]
    differences = []
    for down, right in DIRECTIONS:
        after = grey[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        before = grey[:, 1 - down : 1 - down + rows, 1 - right : 1 - right + columns]
        differences.append((before + after) / 2 - centre)
    window = min(WINDOW, rows, columns)
    squares = torch.stack(differences, 1).square()
    return (functional.avg_pool2d(squares, window, stride=window // 2) + SMALLEST_VARIANCE).sqrt()
