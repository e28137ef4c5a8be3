"""How good a trained model is: the objective's terms, the likelihood bound, and how alike the pictures are.

Each metric is the mean over all images of a split, and depends on the batch size by rounding only.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae import objective
from facevae.inference import batches_of
from facevae.model import VAE
from facevae.params import Likelihood

ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class Evaluation:
    """What a split says of a model.

    `means` are the means of the posteriors, (N, latent_dim); `kl_per_dimension` is the mean KL of each latent
    dimension in nats, (latent_dim,).
    """

    metrics: dict[str, float]
    kl_per_dimension: Tensor
    means: Tensor

    def kl_table(self) -> pd.DataFrame:
        """The latent dimensions by falling KL: rank (from 1), dimension (from 0), kl_nats."""
        kl, dimension = self.kl_per_dimension.sort(descending=True, stable=True)
        return pd.DataFrame({"rank": range(1, len(kl) + 1), "dimension": dimension.numpy(), "kl_nats": kl.numpy()})


@torch.no_grad()
def evaluate(
    model: VAE, images: NDArray[np.uint8], likelihood: Likelihood, *, batch_size: int, seed: int
) -> Evaluation:
    """Measure a model in evaluation mode on images of shape (N, height, width, channels).

    The objective's terms and the bound take one latent drawn from each posterior, with noise that `seed` fixes for
    each image; PSNR and SSIM take the posterior's mean.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(images), model.params.latent_dim, generator=generator).to(device)
    columns: dict[str, list[Tensor]] = {"squared_error": [], "negative_log_likelihood": [], "psnr_db": [], "ssim": []}
    kl_per_dimension, means = [], []
    for batch, batch_noise in zip(batches_of(images, batch_size, device), noise.split(batch_size), strict=True):
        posterior = model.encode(batch)
        drawn, expected = model.decode(posterior.at(batch_noise)), model.decode(posterior.mean)
        columns["squared_error"].append(objective.squared_error(drawn, batch))
        nats = objective.reconstruction_nats(likelihood, drawn, batch, model.log_sigma)
        columns["negative_log_likelihood"].append(nats)
        columns["psnr_db"].append(psnr_db(expected, batch))
        columns["ssim"].append(ssim(expected, batch))
        kl_per_dimension.append(objective.kl_nats_per_dimension(posterior))
        means.append(posterior.mean)
    mean = {name: float(torch.cat(parts).double().mean()) for name, parts in columns.items()}
    kl = torch.cat(kl_per_dimension).double().mean(0).cpu()
    metrics = {
        "squared_error": mean["squared_error"],
        "kl_nats": float(kl.sum()),
        "squared_error_plus_kl": mean["squared_error"] + float(kl.sum()),
        "elbo_nats": -mean["negative_log_likelihood"] - float(kl.sum()),
        "psnr_db": mean["psnr_db"],
        "ssim": mean["ssim"],
        "active_units": active_units(torch.cat(means)),
    }
    return Evaluation(metrics, kl, torch.cat(means).cpu())


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


def active_units(means: Tensor) -> int:
    """How many latent dimensions have posterior means (N, latent_dim) that vary by more than 0.01.

    Burda et al. 2016, arXiv 1509.00519, section 5.2.
    """
    return int((means.var(0, correction=0) > ACTIVE_VARIANCE).sum())
