"""Apply a trained model, in float32 and evaluation mode, to any number of images, batch by batch."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.model.pixels import BATCH_SIZE, batches_of
from facevae.model.refinement import refined
from facevae.model.vae import VAE, Posterior


@torch.no_grad()
def encode_all(model: VAE, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> Posterior:
    """Posteriors of uint8 images (N, height, width, channels), on the CPU, refined if the model's params say so."""
    device, num_steps = next(model.parameters()).device, model.params.refinement_steps
    posteriors = []
    for batch in batches_of(images, batch_size, device):
        posterior = model.encode(batch)
        posteriors.append(refined(model, batch, posterior, num_steps) if num_steps else posterior)
    mean = torch.cat([posterior.mean for posterior in posteriors]).cpu()
    return Posterior(mean, torch.cat([posterior.log_variance for posterior in posteriors]).cpu())


@torch.no_grad()
def decode_all(model: VAE, latent: Tensor, batch_size: int = BATCH_SIZE) -> NDArray[np.uint8]:
    """Decode latents (..., latent_dim) to uint8 pictures (..., height, width, channels)."""
    device = next(model.parameters()).device
    images = torch.cat([model.decode(batch.to(device)).cpu() for batch in latent.flatten(0, -2).split(batch_size)])
    pixels: NDArray[np.uint8] = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels.reshape(*latent.shape[:-1], *pixels.shape[1:])


@torch.no_grad()
def reconstructed(
    model: VAE, images: NDArray[np.uint8], latent: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images (N, height, width, channels), as `batches_of` does, each with its reconstruction.

    `latent` (N, latent_dim) holds one latent per image.
    """
    device = next(model.parameters()).device
    for batch, latents in zip(batches_of(images, batch_size, device), latent.split(batch_size), strict=True):
        yield batch, model.decode(latents.to(device))
