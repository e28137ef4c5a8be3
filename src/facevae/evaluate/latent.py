"""Whether the latent is used, and how far the latents of images are from the prior that samples are drawn from."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from facevae.model import objective
from facevae.model.vae import Posterior

ACTIVE_VARIANCE = 0.01


def latent_table(posteriors: Posterior) -> pd.DataFrame:
    """The latent dimensions by falling KL.

    Returns
    -------
    pandas.DataFrame
        rank (from 1), dimension (from 0), kl_nats, mean_variance (of the posteriors' means), and the moments of the
        aggregate posterior, which the prior has at 0 and 1: aggregate_mean, aggregate_variance.
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


def active_units(means: Tensor) -> int:
    """How many latent dimensions have posterior means (N, latent_dim) that vary by more than 0.01.

    Burda et al. 2016, arXiv 1509.00519, section 5.2.
    """
    return int((means.double().var(0, correction=0) > ACTIVE_VARIANCE).sum())


def aggregate_kl_nats(posteriors: Posterior) -> float:
    """KL divergence from N(0, I) of the Gaussian that has the moments of the aggregate posterior.

    It is what the prior's mean and covariance alone are wrong by; 0 where samples from it fall where images lie.
    """
    mean, covariance = posteriors.aggregate_moments()
    return float(0.5 * (covariance.trace() + mean @ mean - len(mean) - torch.logdet(covariance)))
