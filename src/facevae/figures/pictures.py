"""Reconstructions, samples, interpolations and edits as arrays of pixels.

All are uint8 (rows, columns, height, width, channels), the type `Tiles`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from facevae.evaluate.directions import Directions, direction_of, edit
from facevae.evaluate.distances import nearest_images
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import BATCH_SIZE, batches_of, to_unit_range
from facevae.model.vae import VAE
from facevae.priors.flow_matching import Conditional, FlowMatching
from facevae.priors.normal import Sampler

Tiles = NDArray[np.uint8]


def reconstruct(model: VAE, images: NDArray[np.uint8]) -> Tiles:
    """Images (N, height, width, channels) in the first row, their reconstructions in the second."""
    return np.stack([images, decode_all(model, encode_all(model, images).mean)])


def sample(
    model: VAE, prior: Sampler, num_samples: int, num_columns: int, seed: int, *, temperature: float = 1.0
) -> Tiles:
    """Decode draws of a prior; the rest of the last row is white."""
    latent = prior.sample(num_samples, torch.Generator().manual_seed(seed), temperature=temperature)
    return in_rows(decode_all(model, latent), num_columns)


def conditional(
    model: VAE, flow: FlowMatching, attributes: Sequence[str], num_pairs: int, seed: int, *, temperature: float
) -> Tiles:
    """One row an attribute: pairs of samples with it and without it, from the same noise."""
    samplers = [asked for name in attributes for asked in (flow.given(present=[name]), flow.given(absent=[name]))]
    rows = [sample(model, asked, num_pairs, num_pairs, seed, temperature=temperature) for asked in samplers]
    pairs = np.stack([np.concatenate(rows[0::2]), np.concatenate(rows[1::2])], axis=2)  # (row, pair, 2, ...)
    return pairs.reshape(len(attributes), 2 * num_pairs, *pairs.shape[3:])


def walk(
    model: VAE,
    sampler: Conditional,
    num_stops: int,
    num_steps: int,
    num_walks: int,
    seed: int,
    *,
    temperature: float = 1.0,
) -> Tiles:
    """Frames (num_stops * num_steps, num_walks, ...) of walks through the noise of the flow, back to their start.

    Each step turns the noise from one draw towards the next, so that it stays a draw from N(0, I).
    """
    generator = torch.Generator().manual_seed(seed)
    stops = temperature * torch.randn(num_stops, 1, num_walks, sampler.flow.latent_dim, generator=generator)
    angles = (torch.arange(num_steps) / num_steps * math.pi / 2)[:, None, None]
    noise = torch.cos(angles) * stops + torch.sin(angles) * stops.roll(-1, 0)  # (stop, step, walk, latent_dim)
    latent = sampler.from_noise(noise.flatten(0, 2))
    return decode_all(model, latent.unflatten(0, (num_stops * num_steps, num_walks)))


def in_rows(images: NDArray[np.uint8], num_columns: int) -> Tiles:
    """Images (N, height, width, channels) in rows of `num_columns`; the rest of the last row is white."""
    num_rows = math.ceil(len(images) / num_columns)
    tiles = np.full((num_rows * num_columns, *images.shape[1:]), 255, np.uint8)
    tiles[: len(images)] = images
    return tiles.reshape(num_rows, num_columns, *images.shape[1:])


def nearest(images: NDArray[np.uint8], others: NDArray[np.uint8], *, mirrored: bool) -> Tiles:
    """The nearest of the other images by squared error, for each image (N, height, width, channels), in one row.

    With `mirrored`, each of the others counts mirrored too, and is shown so if it is nearer then.
    """
    device = torch.device("cpu")
    references = batches_of(others, BATCH_SIZE, device)
    indices, _, is_mirrored = nearest_images(to_unit_range(images, device), references, mirrored=mirrored)
    found = np.array(others[indices.numpy()])
    return np.where(is_mirrored.numpy()[:, None, None, None], found[:, :, ::-1], found)[None]


def interpolate(model: VAE, starts: NDArray[np.uint8], ends: NDArray[np.uint8], num_steps: int) -> Tiles:
    """One row per pair of images: the first, `num_steps` pictures on the line between their latents, the second."""
    weights = torch.linspace(0, 1, num_steps)[None, :, None]
    first, last = (encode_all(model, images).mean[:, None] for images in (starts, ends))  # (N, 1, latent_dim)
    between = decode_all(model, torch.lerp(first, last, weights))
    return np.concatenate([starts[:, None], between, ends[:, None]], axis=1)


def vary_attributes(
    model: VAE,
    images: NDArray[np.uint8],
    directions: Directions,
    attributes: Sequence[str],
    strengths: Sequence[float],
) -> Tiles:
    """One row per attribute: an image, then its reconstructions, moved along the attribute's direction.

    Parameters
    ----------
    images
        One per attribute, (num_attributes, height, width, channels).
    strengths
        Multiples of the direction, one per column.
    """
    moved = []
    for latent, attribute in zip(encode_all(model, images).mean, attributes, strict=True):
        direction = direction_of(directions, attribute)
        moved.append(torch.stack([edit(latent, direction, strength) for strength in strengths]))
    return np.concatenate([images[:, None], decode_all(model, torch.stack(moved))], axis=1)


def principal_plane(means: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (latent_dim,) and axes (2, latent_dim) of the plane in which posterior means (N, latent_dim) vary most.

    A latent of two dimensions is the plane: the centre is 0, and the axes are those of the latent.
    """
    if means.shape[1] <= 2:
        return torch.zeros(means.shape[1]), torch.eye(means.shape[1])
    centre = means.mean(0)
    _, _, axes = torch.linalg.svd((means - centre).double(), full_matrices=False)
    axes = axes[:2].float()
    return centre, axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # fixes the sign of each axis


def manifold(model: VAE, centre: Tensor, axes: Tensor, scale: Tensor, num_steps: int) -> Tiles:
    """Decode a grid on a plane in latent space, the second axis pointing up.

    The coordinates along each axis are evenly spaced quantiles of a normal distribution with standard deviation `scale`
    (2,), so each picture stands for the same probability (Kingma and Welling 2014, figure 4).
    """
    quantiles = torch.from_numpy(ndtri((np.arange(num_steps) + 0.5) / num_steps)).float()
    rows = centre + quantiles.flip(0)[:, None, None] * scale[1] * axes[1]
    return decode_all(model, rows + quantiles[None, :, None] * scale[0] * axes[0])
