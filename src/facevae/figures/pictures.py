"""What a model draws: reconstructions, samples, interpolations and edits, as arrays of pixels.

Everything returned is uint8 of shape (rows, columns, height, width, channels).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from facevae.evaluate.directions import Directions, direction_of, edit
from facevae.evaluate.distances import nearest_neighbours
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import BATCH_SIZE, batches_of, to_unit_range
from facevae.model.vae import VAE
from facevae.priors.normal import Prior

Tiles = NDArray[np.uint8]


def reconstruct(model: VAE, images: NDArray[np.uint8]) -> Tiles:
    """Images (N, height, width, channels) in the first row, what the model makes of them in the second."""
    return np.stack([images, decode_all(model, encode_all(model, images).mean)])


def sample(model: VAE, prior: Prior, num_samples: int, num_columns: int, seed: int) -> Tiles:
    """Pictures decoded from draws of a prior; the rest of the last row is white."""
    return in_rows(decode_all(model, prior.sample(num_samples, torch.Generator().manual_seed(seed))), num_columns)


def in_rows(images: NDArray[np.uint8], num_columns: int) -> Tiles:
    """Images (N, height, width, channels) in rows of `num_columns`; the rest of the last row is white."""
    num_rows = math.ceil(len(images) / num_columns)
    tiles = np.full((num_rows * num_columns, *images.shape[1:]), 255, np.uint8)
    tiles[: len(images)] = images
    return tiles.reshape(num_rows, num_columns, *images.shape[1:])


def nearest(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> Tiles:
    """For each image (N, height, width, channels) that of the others which is nearest by squared error, in one row."""
    device = torch.device("cpu")
    indices, _ = nearest_neighbours(to_unit_range(images, device), batches_of(others, BATCH_SIZE, device))
    return np.array(others[indices.numpy()])[None]


def interpolate(model: VAE, starts: NDArray[np.uint8], ends: NDArray[np.uint8], num_steps: int) -> Tiles:
    """A row for each pair of images: the first, `num_steps` pictures on the line between their latents, the second."""
    weights = torch.linspace(0, 1, num_steps)[None, :, None]
    first, last = (encode_all(model, images).mean[:, None] for images in (starts, ends))
    between = decode_all(model, torch.lerp(first, last, weights))
    return np.concatenate([starts[:, None], between, ends[:, None]], axis=1)


def vary_attributes(
    model: VAE,
    images: NDArray[np.uint8],
    directions: Directions,
    attributes: Sequence[str],
    strengths: Sequence[float],
) -> Tiles:
    """A row for each attribute: an image, then its reconstruction moved along the attribute's direction.

    Parameters
    ----------
    images
        One for each attribute.
    strengths
        Multiples of the direction, one a column.
    """
    moved = []
    for latent, attribute in zip(encode_all(model, images).mean, attributes, strict=True):
        direction = direction_of(directions, attribute)
        moved.append(torch.stack([edit(latent, direction, strength) for strength in strengths]))
    return np.concatenate([images[:, None], decode_all(model, torch.stack(moved))], axis=1)


def principal_plane(means: Tensor) -> tuple[Tensor, Tensor]:
    """The centre (latent_dim,) and the two axes (2, latent_dim) of the plane in which posterior means vary most.

    A latent of two dimensions is that plane already: the centre is 0 and the axes are the latent's own.
    """
    if means.shape[1] <= 2:
        return torch.zeros(means.shape[1]), torch.eye(means.shape[1])
    centre = means.mean(0)
    _, _, axes = torch.linalg.svd((means - centre).double(), full_matrices=False)
    axes = axes[:2].float()
    return centre, axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # of each sign one is chosen


def manifold(model: VAE, centre: Tensor, axes: Tensor, scale: Tensor, num_steps: int) -> Tiles:
    """Pictures over a plane in latent space, the second axis pointing up.

    The coordinates along each axis are evenly spaced quantiles of a normal distribution of standard deviation `scale`
    (2,), so that each picture stands for an equal share of it (Kingma and Welling 2014, figure 4).
    """
    quantiles = torch.from_numpy(ndtri((np.arange(num_steps) + 0.5) / num_steps)).float()
    rows = centre + quantiles.flip(0)[:, None, None] * scale[1] * axes[1]
    return decode_all(model, rows + quantiles[None, :, None] * scale[0] * axes[0])
