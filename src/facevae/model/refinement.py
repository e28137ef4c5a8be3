"""Improve posterior means by descent on the objective (Kim et al. 2018, arXiv 1802.02550).

An encoder guesses an image's posterior in one pass. Its error costs more than the decoder's when posteriors are sharp
(Cremer et al. 2018, arXiv 1801.03558).
"""

import math

import torch
from torch import Tensor

from facevae.model.objective import squared_error
from facevae.model.vae import VAE, Posterior

PROBE = 0.25  # share of a direction over which the decoder's change is measured
TINY = torch.finfo(torch.float32).tiny


def refined(model: VAE, images: Tensor, posterior: Posterior, num_steps: int) -> Posterior:
    """Move posterior means to more probable latents; variances stay.

    The steps are conjugate gradients (Fletcher and Reeves 1964) on squared error / (2 sigma^2) + |latent|^2 / 2, which
    is -log p(image, latent) up to a constant, whatever `train.beta` is. The encoder's variances are the preconditioner,
    and the length of a step is exact for a linear decoder, which needs `latent_dim` steps. Each image keeps the most
    probable of its latents, since a step may lead uphill where the decoder is far from linear.

    Parameters
    ----------
    model
        In evaluation mode, trained with a Gaussian likelihood, or with squared errors, whose sigma^2 is 1/2.
    images
        Shape (batch, channel, height, width) in [0, 1].
    """
    with torch.inference_mode(False), torch.enable_grad():
        images, mean = images.clone(), posterior.mean.detach().clone()
        variance = posterior.log_variance.detach().clone().exp()
        return Posterior(_descend(model, images, mean, variance, num_steps), posterior.log_variance)


def _descend(model: VAE, images: Tensor, mean: Tensor, variance: Tensor, num_steps: int) -> Tensor:
    """The latent of lowest energy on the way from `mean`, for each image."""
    precision = torch.exp(-2 * model.log_sigma.detach())
    direction, before = torch.zeros_like(mean), torch.full_like(mean[:, :1], math.inf)
    best, lowest = mean, torch.full_like(mean[:, 0], math.inf)
    for step in range(num_steps + 1):
        mean.requires_grad_()
        reconstruction = model.decode(mean)
        energy = 0.5 * (precision * squared_error(reconstruction, images) + mean.square().sum(1))
        better = energy.detach() < lowest
        best, lowest = torch.where(better[:, None], mean.detach(), best), torch.where(better, energy.detach(), lowest)
        if step == num_steps:
            break
        (gradient,) = torch.autograd.grad(energy.sum(), mean)
        with torch.no_grad():
            descent = _inner(variance * gradient, gradient)
            direction = descent / before * direction - variance * gradient
            change = (model.decode(mean + PROBE * direction) - reconstruction).flatten(1) / PROBE
            curvature = precision * _inner(change, change) + _inner(direction, direction)
            mean = mean - _inner(direction, gradient) / curvature.clamp(min=TINY) * direction
            before = descent.clamp(min=TINY)
    return best


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """The inner products of the rows of two matrices (batch, n), shape (batch, 1)."""
    return (first * second).sum(1, keepdim=True)
