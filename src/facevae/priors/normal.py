"""The standard normal, and the Gaussian arithmetic that the fitted priors share."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from facevae.model.vae import Posterior


class Sampler(Protocol):
    """What samples come from; on the CPU."""

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """Draw latents (num_samples, latent_dim); the temperature scales the noise that they are made of."""


class Prior(Sampler, Protocol):
    """A sampler with a density."""

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""


@dataclass(frozen=True)
class StandardNormal:
    """N(0, I), the prior of the objective."""

    latent_dim: int

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """Draw latents (num_samples, latent_dim) with standard deviation `temperature`."""
        return temperature * torch.randn(num_samples, self.latent_dim, generator=generator)

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""
        return standard_normal_log_prob(latent)


@torch.no_grad()
def mean_log_prob(prior: Prior, latent: Tensor) -> float:
    """The mean log density of latents (batch, latent_dim) in nats."""
    return float(prior.log_prob(latent).double().mean())


def aggregate_gaussian(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Mean (latent_dim,) of the aggregate posterior and the lower Cholesky factor of its covariance, as float64."""
    mean, covariance = posterior.aggregate_moments()
    return mean, torch.linalg.cholesky(covariance)


def whiten(latent: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Latents (batch, latent_dim) in the coordinates in which N(mean, factor factor^T) is N(0, I), as float64."""
    whitened: Tensor = torch.linalg.solve_triangular(factor, (latent.double() - mean).T, upper=False).T
    return whitened


def standard_normal_log_prob(latent: Tensor) -> Tensor:
    """Log density of latents (batch, latent_dim) under N(0, I) in nats, shape (batch,)."""
    return -0.5 * (latent.square() + math.log(2 * math.pi)).sum(1)
