"""How well a trained model redraws images: the terms of the objective, and how alike the pictures are.

Each metric is the mean over all images of a split, and depends on the batch size by rounding only.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae import objective
from facevae.inference import batches_of
from facevae.model import VAE, Posterior


@torch.no_grad()
def reconstruction_metrics(
    model: VAE, images: NDArray[np.uint8], posteriors: Posterior, *, batch_size: int, seed: int
) -> dict[str, float]:
    """Measure reconstructions of images (N, height, width, channels) from their posteriors.

    The squared error takes one latent drawn from each posterior, with noise that `seed` fixes for each image; PSNR and
    SSIM take the posterior's mean.
    """
    device = next(model.parameters()).device
    drawn = posteriors.sample(torch.Generator().manual_seed(seed))
    columns: dict[str, list[Tensor]] = {"squared_error": [], "psnr_db": [], "ssim": []}
    for batch, *latents in zip(
        batches_of(images, batch_size, device),
        drawn.split(batch_size),
        posteriors.mean.split(batch_size),
        strict=True,
    ):
        from_draw, from_mean = (model.decode(latent.to(device)) for latent in latents)
        columns["squared_error"].append(objective.squared_error(from_draw, batch))
        columns["psnr_db"].append(psnr_db(from_mean, batch))
        columns["ssim"].append(ssim(from_mean, batch))
    mean = {name: float(torch.cat(parts).double().mean()) for name, parts in columns.items()}
    kl = float(objective.kl_nats(posteriors).double().mean())
    return {
        "squared_error": mean["squared_error"],
        "kl_nats": kl,
        "squared_error_plus_kl": mean["squared_error"] + kl,
        "psnr_db": mean["psnr_db"],
        "ssim": mean["ssim"],
    }


def psnr_db(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, for a peak of 1, shape (batch,)."""
    return -10 * torch.log10((reconstruction - images).square().flatten(1).mean(1))


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, averaged over channels and windows, shape (batch,).

    Wang et al. 2004 ("Image quality assessment"), equation 13, with their window of 11 x 11 pixels weighted by a
    Gaussian of 1.5 pixels, only where it lies wholly inside the image. Images smaller than the window get the largest
    odd window that fits.
    """
    channels, size = images.shape[1], min(11, images.shape[-1] - 1 + images.shape[-1] % 2)
    offsets = torch.arange(size, device=images.device) - size // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (weights[:, None] * weights / weights.sum() ** 2).expand(channels, 1, size, size).contiguous()

    def local_mean(values: Tensor) -> Tensor:
        return functional.conv2d(values, window, groups=channels)

    mean_x, mean_y = local_mean(reconstruction), local_mean(images)
    variance_x = local_mean(reconstruction.square()) - mean_x.square()
    variance_y = local_mean(images.square()) - mean_y.square()
    covariance = local_mean(reconstruction * images) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return (luminance * structure).flatten(1).mean(1)
