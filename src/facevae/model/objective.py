"""The terms of the objective in nats an image. Each is exact, unless its docstring calls it a bound.

The negative evidence lower bound is reconstruction + KL (Kingma and Welling 2014, arXiv 1312.6114, equation 3).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from facevae.config.schema import Likelihood
from facevae.model.vae import VAE, Posterior

LEVEL_WIDTH = 1 / 255  # between two levels of an 8-bit pixel, in [0, 1] units
LOG_SIGMA_FLOOR = -6.0  # the least log sigma in training: a sigma of 0.0025, less than the width of a level


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error summed over the pixels and channels of each image, shape (batch,)."""
    return (reconstruction - images).square().flatten(1).sum(1)


def gaussian_nats(reconstruction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(images; reconstruction, sigma^2) of each image, shape (batch,) (arXiv 2006.13202, equation 4).

    All pixels share the scalar `log_sigma`.
    """
    num_values = math.prod(images.shape[1:])
    error = squared_error(reconstruction, images)
    return 0.5 * error * torch.exp(-2 * log_sigma) + num_values * (log_sigma + 0.5 * math.log(2 * math.pi))


def bernoulli_nats(logits: Tensor, images: Tensor) -> Tensor:
    """-log Bernoulli(images; sigmoid(logits)) of each image, shape (batch,), for pixels that are 0 or 1.

    It takes logits because a sigmoid rounds to 1 from a logit of 17 on, where neither its logarithm nor its gradient is
    of use.
    """
    return functional.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def predict(model: VAE, likelihood: Likelihood, latent: Tensor) -> Tensor:
    """What a likelihood compares with images: logits for a Bernoulli, the reconstruction for the others."""
    return model.decode_logits(latent) if likelihood == "bernoulli" else model.decode(latent)


def reconstruction_term(likelihood: Likelihood, prediction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """The reconstruction term of the training loss of what `predict` gives, shape (batch,).

    "squared_error" is `gaussian_nats` at a variance of 1/2, without its constant.
    """
    match likelihood:
        case "squared_error":
            return squared_error(prediction, images)
        case "gaussian":
            return gaussian_nats(prediction, images, log_sigma)
        case "bernoulli":
            return bernoulli_nats(prediction, images)


def discrete_nats(likelihood: Likelihood, prediction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """Upper bound of -log P(images | latent) for pixels of 256 levels, shape (batch,), from what `predict` gives.

    A Gaussian is dequantised uniformly (Theis et al. 2016, arXiv 1511.01844, section 3.1): by Jensen's inequality, a
    level has at least the probability exp E[log density] x width. The expectation is over the level, a uniform
    distribution of variance width^2 / 12. A Bernoulli is discrete already, and exact.
    """
    if likelihood == "bernoulli":
        return bernoulli_nats(prediction, images)
    num_values = math.prod(images.shape[1:])
    spread = 0.5 * num_values * LEVEL_WIDTH**2 / 12 * torch.exp(-2 * log_sigma)
    return gaussian_nats(prediction, images, log_sigma) + spread - num_values * math.log(LEVEL_WIDTH)


def kl_nats_per_dimension(posterior: Posterior) -> Tensor:
    """KL divergence of the posterior from N(0, I), shape (batch, latent_dim) (arXiv 1312.6114, appendix B)."""
    variance = posterior.log_variance.exp()
    return 0.5 * (posterior.mean.square() + variance - posterior.log_variance - 1)


def importance_weighted_terms(errors: Tensor, latent: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Split the negative importance-weighted bound (arXiv 1509.00519, equation 8) into two terms, each (batch,).

    They are reconstruction and KL of the posterior that the bound takes in effect: one of K draws, chosen by its weight
    (arXiv 1704.02916).

    Parameters
    ----------
    errors
        -log P(image | latent) of each draw, shape (K, batch).
    latent
        The draws, shape (K, batch, latent_dim).
    """
    squares = (latent - posterior.mean).square() * torch.exp(-posterior.log_variance)
    log_ratios = 0.5 * (latent.square() - squares - posterior.log_variance).sum(2)  # log q(latent) - log p(latent)
    log_weights = torch.log_softmax(-errors - log_ratios, 0)
    weights = log_weights.exp()
    kl = log_ratios + log_weights + math.log(len(errors))
    return (weights * errors).sum(0), (weights * kl).sum(0)


def kl_nats(posterior: Posterior) -> Tensor:
    """KL divergence of each image's posterior from N(0, I), shape (batch,)."""
    return kl_nats_per_dimension(posterior).sum(1)
