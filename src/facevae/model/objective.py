"""The terms of the objective in nats an image, each an exact formula or a bound that is said to be one.

The negative evidence lower bound is reconstruction + KL (Kingma and Welling 2014, arXiv 1312.6114, equation 3).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from facevae.config.schema import Likelihood
from facevae.model.vae import Posterior

LEVEL_WIDTH = 1 / 255  # from one level of an 8-bit pixel to the next, in intensities
LOG_SIGMA_FLOOR = -6.0  # training holds log sigma above it: 8-bit pixels are known no better than to a level


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error of each image, summed over its pixels and channels, shape (batch,)."""
    return (reconstruction - images).square().flatten(1).sum(1)


def gaussian_nats(reconstruction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(images; reconstruction, sigma^2) of each image, shape (batch,) (arXiv 2006.13202, equation 4).

    `log_sigma` is a scalar, shared by all pixels.
    """
    num_values = math.prod(images.shape[1:])
    error = squared_error(reconstruction, images)
    return 0.5 * error * torch.exp(-2 * log_sigma) + num_values * (log_sigma + 0.5 * math.log(2 * math.pi))


def bernoulli_nats(reconstruction: Tensor, images: Tensor) -> Tensor:
    """-log Bernoulli(images; reconstruction) of each image of pixels that are 0 or 1, shape (batch,).

    That of a pixel is held below 100, since a reconstruction of 0 or 1 is one that was rounded.
    """
    return functional.binary_cross_entropy(reconstruction, images, reduction="none").flatten(1).sum(1)


def reconstruction_term(likelihood: Likelihood, reconstruction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """What training minimises beside the KL, shape (batch,).

    For "squared_error" it is the squared error itself: `gaussian_nats` at a variance of 1/2 less its constant.
    """
    match likelihood:
        case "squared_error":
            return squared_error(reconstruction, images)
        case "gaussian":
            return gaussian_nats(reconstruction, images, log_sigma)
        case "bernoulli":
            return bernoulli_nats(reconstruction, images)


def discrete_nats(likelihood: Likelihood, reconstruction: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """An upper bound of -log P(images | latent), the images' pixels being one of 256 levels, shape (batch,).

    A Gaussian is dequantised uniformly (Theis et al. 2016, arXiv 1511.01844, section 3.1): the probability of a level
    is at least exp E[log density] times the width of a level, the mean being over the level, of variance width^2 / 12.
    A Bernoulli is discrete already.
    """
    if likelihood == "bernoulli":
        return bernoulli_nats(reconstruction, images)
    num_values = math.prod(images.shape[1:])
    spread = 0.5 * num_values * LEVEL_WIDTH**2 / 12 * torch.exp(-2 * log_sigma)
    return gaussian_nats(reconstruction, images, log_sigma) + spread - num_values * math.log(LEVEL_WIDTH)


def kl_nats_per_dimension(posterior: Posterior) -> Tensor:
    """KL divergence of the posterior from N(0, I), shape (batch, latent_dim) (arXiv 1312.6114, appendix B)."""
    variance = posterior.log_variance.exp()
    return 0.5 * (posterior.mean.square() + variance - posterior.log_variance - 1)


def kl_nats(posterior: Posterior) -> Tensor:
    """KL divergence of each image's posterior from the prior, shape (batch,)."""
    return kl_nats_per_dimension(posterior).sum(1)
