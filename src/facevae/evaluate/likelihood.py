"""Bounds of the log-likelihood of held-out images with discrete pixels: 256 levels, or black and white."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.schema import Likelihood
from facevae.model import objective
from facevae.model.pixels import batches_of
from facevae.model.vae import VAE, Posterior
from facevae.priors.normal import Prior


def calibrated_log_sigma(squared_error: float, num_values: int) -> Tensor:
    """The log sigma that maximises the likelihood of images with this mean squared error.

    The error is summed over the `num_values` values of an image. The optimum is closed-form (arXiv 2006.13202, equation
    6), with the same floor as in training.
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
    """The evidence lower bound and the importance-weighted bound, means over images, for each sigma and prior.

    K latents are drawn from each posterior q. Each has the weight w = P(image | latent) p(latent) / q(latent). The
    evidence lower bound is the mean of log w (arXiv 1312.6114, equation 2). The importance-weighted bound is the log
    of the mean w (arXiv 1509.00519, equation 8); it rises with K towards log P(image).

    Parameters
    ----------
    images, posteriors
        uint8 (N, height, width, channels), and their posteriors on the CPU.
    log_sigmas
        The Gaussian's log sigmas to evaluate, by name. A Bernoulli ignores them.
    priors
        Distributions over the latent, by name.

    Returns
    -------
    pandas.DataFrame
        sigma, prior, elbo_nats, elbo_bits_per_dimension, importance_weighted_nats,
        importance_weighted_bits_per_dimension. Nats are those of the bound: higher is better. Bits are what a code
        needs for each value of an image: lower is better.
    """
    generator = torch.Generator().manual_seed(seed)
    keys = [(sigma, prior) for sigma in log_sigmas for prior in priors]
    sums = {key: torch.zeros(len(images)) for key in keys}  # of log w, for each image
    log_sums = {key: torch.full((len(images),), -math.inf) for key in keys}  # log of the sum of w
    for _ in range(num_importance_samples):
        latent = posteriors.sample(generator)  # (N, latent_dim)
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


def likelihood_metrics(table: pd.DataFrame, best_prior: str) -> dict[str, float]:
    """The bounds at the trained sigma, and the bits with a calibrated sigma and with the best prior."""
    rows = {(row.pop("sigma"), row.pop("prior")): row for row in table.to_dict("records")}
    sigma = "calibrated" if ("calibrated", "normal") in rows else "trained"
    bits = "importance_weighted_bits_per_dimension"
    return {
        **{str(name): value for name, value in rows["trained", "normal"].items()},
        "calibrated_bits_per_dimension": rows[sigma, "normal"][bits],
        "fitted_prior_bits_per_dimension": rows[sigma, best_prior][bits],
    }


def _nats(
    model: VAE,
    images: NDArray[np.uint8],
    latent: Tensor,
    likelihood: Likelihood,
    log_sigmas: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, Tensor]:
    """-log P(image | latent) for each sigma, or an upper bound of it, (N,) on the CPU."""
    nats: dict[str, list[Tensor]] = {name: [] for name in log_sigmas}
    device = next(model.parameters()).device
    for batch, latents in zip(batches_of(images, batch_size, device), latent.split(batch_size), strict=True):
        prediction = objective.predict(model, likelihood, latents.to(device))
        for name, log_sigma in log_sigmas.items():
            bounds = objective.discrete_nats(likelihood, prediction, batch, log_sigma.to(device))
            nats[name].append(bounds.cpu())
    return {name: torch.cat(parts) for name, parts in nats.items()}


def _bits(nats: float, num_values: int) -> float:
    return -nats / (num_values * math.log(2))
