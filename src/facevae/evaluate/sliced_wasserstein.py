"""The sliced Wasserstein distance of two sets of images: how much their patches differ, scale by scale."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae.model.pixels import BATCH_SIZE, batches_of

SMALLEST_LEVEL = 16  # pixels
PATCH_SIZE = 7  # pixels
NUM_PATCHES = 2**15  # per set and level, whatever the number of images
NUM_DIRECTIONS = 256
FLAT = 1e-5  # a smaller deviation of patches is rounding only: images in [0, 1] change in steps of 1/255

BINOMIAL = torch.tensor([1, 4, 6, 4, 1]) / 16


@dataclass(frozen=True)
class SlicedWasserstein:
    """The distance x 1000 at each level of the pyramid; the key is the level's size in pixels, finest first."""

    levels: dict[int, float]

    @property
    def mean(self) -> float:
        return sum(self.levels.values()) / len(self.levels)


@dataclass(frozen=True)
class ProjectedPatches:
    """Patches of a set of images, projected on random directions: all that the distance needs of the set.

    `image_shape` is (height, width, channels). `levels` has, for each level's size in pixels, the sorted projections
    (NUM_DIRECTIONS, NUM_PATCHES).
    """

    image_shape: tuple[int, ...]
    levels: dict[int, NDArray[np.float32]]

    def distance(self, other: "ProjectedPatches") -> SlicedWasserstein:
        """The distance to another set of images, projected with the same seed.

        Raises
        ------
        ValueError
            The two sets differ in image size or channels.
        """
        if self.image_shape != other.image_shape:
            raise ValueError(f"images are {self.image_shape}, samples {other.image_shape}: the shapes must be equal")
        return SlicedWasserstein(
            {size: 1000 * sorted_distance(values, other.levels[size]) for size, values in self.levels.items()}
        )


def project_patches(images: NDArray[np.uint8], *, seed: int) -> ProjectedPatches:
    """Project the 7 x 7 patches of square images (N, height, width, channels), scale by scale.

    Karras et al. 2018, arXiv 1710.10196, section 5. The scales are the levels of a Laplacian pyramid down to 16 pixels;
    a smaller image is its own only level. A set's patches are normalised by the mean and deviation of each channel in
    that set, so brightness and contrast do not count. Every set of one image size gives the same number of patches,
    from the same places, projected on the same directions: the distance of a set to itself is 0. Two sets of real
    images have a positive distance, larger for smaller sets, so compare only distances between sets of the same sizes.
    """
    generator = np.random.default_rng(seed)
    sizes = _level_sizes(images.shape[1])
    corners = [generator.integers(0, size - PATCH_SIZE + 1, (NUM_PATCHES, 2)) for size in sizes]
    levels = {}
    for size, patches in zip(sizes, _patches(images, corners), strict=True):
        directions = generator.standard_normal((NUM_DIRECTIONS, patches.shape[1]), dtype=np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        levels[size] = np.sort(directions @ patches.T)
    return ProjectedPatches(images.shape[1:], levels)


def sorted_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Wasserstein-1 distance between two sets of sorted values, mean over rows, both (num_rows, num_values)."""
    return float(np.abs(a - b).mean(dtype=np.float64))


def laplacian_pyramid(images: Tensor, num_levels: int) -> list[Tensor]:
    """The detail that each level adds to the next coarser one, finest first; the last level is the coarsest image.

    Burt and Adelson 1983 ("The Laplacian pyramid as a compact image code"), on images (N, channel, height, width).
    """
    levels = []
    for _ in range(num_levels - 1):
        blur = _blur_matrix(images.shape[-1])
        shrink, spread = blur[::2], 2 * blur[:, ::2]
        coarse = shrink @ images @ shrink.T
        levels.append(images - spread @ coarse @ spread.T)
        images = coarse
    return [*levels, images]


def _level_sizes(size: int) -> list[int]:
    """Size of each level of the pyramid in pixels, finest first."""
    sizes = [size]
    while (half := (sizes[-1] + 1) // 2) >= SMALLEST_LEVEL:
        sizes.append(half)
    return sizes


def _patches(images: NDArray[np.uint8], corners: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
    """Normalised patches of each level, (NUM_PATCHES, num_values), spread evenly over the images."""
    owner = np.arange(NUM_PATCHES) * len(images) // NUM_PATCHES  # the image of each patch
    levels: list[list[Tensor]] = [[] for _ in corners]
    for i, batch in enumerate(batches_of(images, BATCH_SIZE, torch.device("cpu"))):
        chosen = owner // BATCH_SIZE == i
        rows = owner[chosen] % BATCH_SIZE
        for patches, level, corner in zip(levels, laplacian_pyramid(batch, len(corners)), corners, strict=True):
            windows = level.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1)  # (batch, channel, y, x, 7, 7)
            patches.append(windows[rows, :, *corner[chosen].T])
    return [_normalised(torch.cat(patches)) for patches in levels]


def _normalised(patches: Tensor) -> NDArray[np.float32]:
    """Patches (num_patches, channel, 7, 7) as rows, each channel with mean 0 and variance 1."""
    deviation, mean = torch.std_mean(patches, (0, 2, 3), correction=0, keepdim=True)
    rows: NDArray[np.float32] = ((patches - mean) / deviation.clamp(min=FLAT)).flatten(1).numpy()
    return rows


def _blur_matrix(size: int) -> Tensor:
    """What smooths a column of pixels by the binomial filter, mirrored at its ends: (size, size).

    For filters so small, matrix products are several times as fast as convolutions by channel.
    """
    mirrored = functional.pad(torch.eye(size)[None], (0, 0, 2, 2), "reflect")[0]  # (size + 4, size)
    return mirrored.unfold(0, 5, 1) @ BINOMIAL
