"""Bounds of the log-likelihood of held-out images, whose pixels are discrete: one of 256 levels, or black and white."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.schema import Likelihood
from facevae.model import objective
from facevae.model.inference import reconstructed
from facevae.model.vae import VAE, Posterior
from facevae.priors.normal import Prior


def calibrated_log_sigma(squared_error: float, num_values: int) -> Tensor:
    """The log sigma under which a mean squared error, summed over the values of an image, is most likely.

    It is the optimum in closed form of arXiv 2006.13202, equation 6, floored as in training.
    """
    return torch.tensor(max(0.5 * math.log(squared_error / num_values), objective.LOG_SIGMA_FLOOR))


@torch.no_grad()
def likelihood_table(
    model: VAE,
    images: NDArray[np.uint8],
    posteriors: Posterior,
    likelihood: Likelihood,
    log_sigmas: Mapping[str, Tensor],
    priors: Mapping[str, Prior],
    *,
    num_importance_samples: int,
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """The evidence lower bound and the importance-weighted bound, means over images, for each scale and prior.

    With K latents drawn from each posterior q the weights are w = P(image | latent) p(latent) / q(latent); the bounds
    are the means of log w (arXiv 1312.6114, equation 2) and of the log of the mean w (arXiv 1509.00519, equation 8),
    which rises with K towards log P(image).

    Parameters
    ----------
    images, posteriors
        Shape (N, height, width, channels), and what the model makes of them, on the CPU.
    log_sigmas
        Scales of the Gaussian to evaluate under, by name; a Bernoulli has none, and takes no notice.
    priors
        Distributions over the latent, by name.

    Returns
    -------
    pandas.DataFrame
        sigma, prior, elbo_nats, elbo_bits_per_dimension, importance_weighted_nats,
        importance_weighted_bits_per_dimension. The nats are those of the bound, the higher the better; the bits those
        that a code of the image needs for each value, the lower the better.
    """
    generator = torch.Generator().manual_seed(seed)
    keys = [(sigma, prior) for sigma in log_sigmas for prior in priors]
    sums = {key: torch.zeros(len(images)) for key in keys}
    log_sums = {key: torch.full((len(images),), -math.inf) for key in keys}
    for _ in range(num_importance_samples):
        latent = posteriors.sample(generator)
        nats = _nats(model, images, latent, likelihood, log_sigmas, batch_size)
        log_density = posteriors.log_density(latent)
        log_ratios = {name: prior.log_prob(latent) - log_density for name, prior in priors.items()}
        for (sigma, prior), total in sums.items():
            log_weights = log_ratios[prior] - nats[sigma]
            total += log_weights
            log_sums[sigma, prior] = torch.logaddexp(log_sums[sigma, prior], log_weights)
    num_values = images[0].size
    rows = []
    for key in keys:
        elbo = float(sums[key].double().mean()) / num_importance_samples
        weighted = float(log_sums[key].double().mean()) - math.log(num_importance_samples)
        rows.append((*key, elbo, _bits(elbo, num_values), weighted, _bits(weighted, num_values)))
    bounds = ("elbo", "importance_weighted")
    columns = [f"{bound}_{unit}" for bound in bounds for unit in ("nats", "bits_per_dimension")]
    return pd.DataFrame(rows, columns=["sigma", "prior", *columns])


def _nats(
    model: VAE,
    images: NDArray[np.uint8],
    latent: Tensor,
    likelihood: Likelihood,
    log_sigmas: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, Tensor]:
    """-log P(image | latent) for each scale, (N,) on the CPU."""
    nats: dict[str, list[Tensor]] = {name: [] for name in log_sigmas}
    for batch, reconstruction in reconstructed(model, images, latent, batch_size):
        for name, log_sigma in log_sigmas.items():
            bounds = objective.discrete_nats(likelihood, reconstruction, batch, log_sigma.to(batch.device))
            nats[name].append(bounds.cpu())
    return {name: torch.cat(parts) for name, parts in nats.items()}


def _bits(nats: float, num_values: int) -> float:
    return -nats / (num_values * math.log(2))
