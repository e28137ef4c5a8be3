"""How much of the latent is in use, and how far the aggregate posterior is from N(0, I)."""

import logging

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from facevae.model import objective
from facevae.model.vae import Posterior

ACTIVE_VARIANCE = 0.01  # a unit is active if the variance of its posterior means is higher

logger = logging.getLogger(__name__)


def latent_table(posteriors: Posterior) -> pd.DataFrame:
    """List the latent dimensions, the one with the highest KL first.

    Returns
    -------
    pandas.DataFrame
        rank (from 1), dimension (from 0), kl_nats (mean over images), mean_variance (of the posterior means), and the
        moments of the aggregate posterior: aggregate_mean (0 for the prior), aggregate_variance (1 for the prior).
    """
    mean, covariance = posteriors.aggregate_moments()
    columns = {
        "kl_nats": objective.kl_nats_per_dimension(posteriors).double().mean(0),
        "mean_variance": posteriors.mean.double().var(0, correction=0),
        "aggregate_mean": mean,
        "aggregate_variance": covariance.diagonal(),
    }
    table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    table.insert(0, "dimension", np.arange(len(table)))
    table = table.sort_values("kl_nats", ascending=False, kind="stable", ignore_index=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


def latent_metrics(posteriors: Posterior) -> dict[str, float]:
    """How much of the latent is in use; warns of a collapsed posterior."""
    num_active = active_units(posteriors.mean)
    if num_active == 0:
        logger.warning(
            "the posterior has collapsed: no latent dimension is active, so all reconstructions are the same picture. "
            "Lower train.beta, or raise train.kl_warmup_epochs"
        )
    return {
        "active_units": num_active,
        "aggregate_kl_nats": aggregate_kl_nats(posteriors),
        "posterior_collapsed": int(num_active == 0),
    }


def active_units(means: Tensor) -> int:
    """Count the latent dimensions whose posterior means (N, latent_dim) have a variance above 0.01.

    Burda et al. 2016, arXiv 1509.00519, section 5.2.
    """
    return int((means.double().var(0, correction=0) > ACTIVE_VARIANCE).sum())


def aggregate_kl_nats(posteriors: Posterior) -> float:
    """KL divergence from N(0, I), in nats, of the Gaussian with the moments of the aggregate posterior.

    It is 0 if the prior has the mean and the covariance of the latents of images.
    """
    mean, covariance = posteriors.aggregate_moments()
    return float(0.5 * (covariance.trace() + mean @ mean - len(mean) - torch.logdet(covariance)))
