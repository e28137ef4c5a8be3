"""How well a trained model reconstructs images: the terms of the objective, PSNR and SSIM.

Each metric is a mean over images, and depends on the batch size by rounding only.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.model import objective
from facevae.model.inference import reconstructed
from facevae.model.vae import VAE, Posterior


def reconstruction_metrics(
    model: VAE, images: NDArray[np.uint8], posteriors: Posterior, *, batch_size: int, seed: int
) -> dict[str, float]:
    """Measure reconstructions of images (N, height, width, channels) from their posteriors.

    The squared error is `mean_squared_error`; PSNR and SSIM decode the posterior's mean.
    """
    error = mean_squared_error(model, images, posteriors, batch_size=batch_size, seed=seed)
    kl = float(objective.kl_nats(posteriors).double().mean())
    columns: dict[str, list[Tensor]] = {"psnr_db": [], "ssim": []}
    for batch, reconstruction in reconstructed(model, images, posteriors.mean, batch_size):
        columns["psnr_db"].append(psnr_db(reconstruction, batch))
        columns["ssim"].append(ssim(reconstruction, batch))
    means = {name: float(torch.cat(parts).double().mean()) for name, parts in columns.items()}
    return {"squared_error": error, "kl_nats": kl, "squared_error_plus_kl": error + kl, **means}


def mean_squared_error(
    model: VAE, images: NDArray[np.uint8], posteriors: Posterior, *, batch_size: int, seed: int
) -> float:
    """Squared error in [0, 1] units, summed over an image's values, mean over images (N, height, width, channels).

    One latent is drawn from each posterior; `seed` determines the noise.
    """
    drawn = posteriors.sample(torch.Generator().manual_seed(seed))
    errors = [
        objective.squared_error(reconstruction, batch)
        for batch, reconstruction in reconstructed(model, images, drawn, batch_size)
    ]
    return float(torch.cat(errors).double().mean())


def psnr_db(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, for a peak of 1, shape (batch,)."""
    return -10 * torch.log10((reconstruction - images).square().flatten(1).mean(1))


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, averaged over channels and windows, shape (batch,).

    Wang et al. 2004 ("Image quality assessment"), equation 13, with their window of 11 x 11 pixels, weighted by a
    Gaussian of 1.5 pixels, at every place where it lies wholly inside the image. Smaller images get the largest odd
    window that fits.
    """
    width = images.shape[-1]
    size = min(11, width - 1 + width % 2)
    offsets = torch.arange(size, device=images.device) - size // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    places = torch.eye(width, device=images.device).unfold(0, size, 1)  # (width - size + 1, width, size)
    window = places @ (weights / weights.sum())  # (width - size + 1, width), one row per place of the window

    def local_mean(values: Tensor) -> Tensor:
        return window @ values @ window.T  # matrix products are several times as fast as convolutions by channel

    mean_x, mean_y = local_mean(reconstruction), local_mean(images)  # (batch, channel, width - size + 1, ...)
    variance_x = local_mean(reconstruction.square()) - mean_x.square()
    variance_y = local_mean(images.square()) - mean_y.square()
    covariance = local_mean(reconstruction * images) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return (luminance * structure).flatten(1).mean(1)
