"""Distances between sets of images, sharpness, and nearest neighbours.

Images are uint8 (N, height, width, channels); memory maps work too. Features are one row per image, from any network.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae.errors import UserError
from facevae.model.pixels import BATCH_SIZE, batches_of

GREY = torch.tensor([0.299, 0.587, 0.114])  # Rec. 601, as Pillow's mode "L"
LAPLACIAN = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])


def sharpness(images: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey image, in [0, 1] units, mean over images.

    Pech-Pacheco et al. 2000 ("Diatom autofocusing in brightfield microscopy"), with the Laplacian of four neighbours,
    at every pixel but those on the border.
    """
    weights = GREY if images.shape[-1] == 3 else torch.ones(1)
    variances = []
    for batch in batches_of(images, BATCH_SIZE, torch.device("cpu")):
        grey = (batch * weights[:, None, None]).sum(1, keepdim=True)
        variances.append(functional.conv2d(grey, LAPLACIAN).flatten(1).var(1, correction=0))
    return float(torch.cat(variances).double().mean())


def sharpness_ratio(samples: NDArray[np.uint8], images: NDArray[np.uint8]) -> float:
    """Sharpness of samples over that of images: below 1 the samples are blurred, above 1 noisy.

    Raises
    ------
    UserError
        Every image is of a single colour, so there is no sharpness to compare with.
    """
    if (reference := sharpness(images)) == 0:
        raise UserError(
            "data: every held-out image is of a single colour, so sharpness cannot be measured. Use other images"
        )
    return sharpness(samples) / reference


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and (M, D), in squared feature units.

    Heusel et al. 2017, arXiv 1706.08500, equation 6, with unbiased covariances as in their code. The distance falls as
    N and M grow, so compare only distances between sets of the same sizes.
    """
    mean_a, root_a = _gaussian(features_a)
    mean_b, root_b = _gaussian(features_b)
    # A^T A and B^T B are the covariances. The trace of the root of their product is the sum of the singular values of
    # A B^T. So no root of an ill-conditioned matrix is needed, and the covariances need not have full rank.
    overlap = torch.linalg.matrix_norm(root_a @ root_b.T, ord="nuc")
    return float((mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap)


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, D) and (M, D), with the kernel (x . y / D + 1)^3.

    Bińkowski et al. 2018, arXiv 1801.01401, section 3 and equation 4. Its expectation does not depend on N and M, and
    is 0 for equal distributions; so it may be negative.
    """
    a, b = features_a.double(), features_b.double()
    within = (_kernel_mean_without_diagonal(features) for features in (a, b))
    return sum(within) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def nearest_neighbours(queries: Tensor, references: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Find the nearest reference of each query by Euclidean distance.

    Parameters
    ----------
    queries
        Images or features (N, ...).
    references
        Batches (batch, ...) of the same kind, such as `batches_of(images, ...)` or `features.split(1000)`. Only one
        batch is in memory at a time.

    Returns
    -------
    tuple
        Indices (N,) into all references, int64, and distances (N,), float64.
    """
    points = queries.flatten(1).double()  # in float32, equal images would be far from distance 0
    distances = torch.full_like(points[:, 0], torch.inf)
    indices = torch.zeros_like(distances, dtype=torch.int64)
    start = 0
    for batch in references:
        found = torch.cdist(points, batch.flatten(1).double(), compute_mode="use_mm_for_euclid_dist").min(1)
        indices = torch.where(found.values < distances, found.indices + start, indices)
        distances = torch.minimum(found.values, distances)
        start += len(batch)
    return indices, distances


def nearest_images(images: Tensor, references: Iterable[Tensor], *, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest reference of each image (N, channel, height, width), as `nearest_neighbours` does.

    With `mirrored`, a reference counts as it is and mirrored, as a training that mirrors its images sees it. The third
    result, bool (N,), says which references are nearest when mirrored.
    """
    queries = torch.cat([images, images.flip(3)]) if mirrored else images  # mirrored itself, an image is as far
    indices, distances = (found.view(-1, len(images)) for found in nearest_neighbours(queries, references))
    nearest = distances.min(0)
    return indices.gather(0, nearest.indices[None])[0], nearest.values, nearest.indices.bool()


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) of features (N, D), and A with at most D rows such that A^T A is their covariance; float64."""
    mean = features.double().mean(0)
    centred = (features.double() - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of the kernel over all pairs, a thousand rows at a time."""
    return sum(float((rows @ b.T / b.shape[1] + 1).pow(3).sum()) for rows in a.split(1000))


def _kernel_mean_without_diagonal(features: Tensor) -> float:
    """Mean of the kernel over all pairs of different rows."""
    num_features, dimension = features.shape
    diagonal = float((features.square().sum(1) / dimension + 1).pow(3).sum())
    return (_kernel_sum(features, features) - diagonal) / (num_features * (num_features - 1))
