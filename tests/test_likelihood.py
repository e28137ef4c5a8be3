import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import disc_images, small_params
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from facevae.evaluate.likelihood import calibrated_log_sigma, likelihood_table
from facevae.model import objective
from facevae.model.inference import encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, Posterior
from facevae.priors.mixture import Mixture
from facevae.priors.normal import StandardNormal

SIGMA = 0.1
SIZE = 6  # pixels, height = width
LATENT = 2


class LinearVAE(nn.Module):
    """x = W z + 1/2 + noise has a known posterior and likelihood; `widening` makes the posterior too wide."""

    def __init__(self, widening: float = 1.0) -> None:
        super().__init__()
        self.params = small_params().model
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.05 * torch.randn(SIZE**2, LATENT, generator=generator))
        self.widening = widening

    def encode(self, images: Tensor) -> Posterior:
        precision = torch.eye(LATENT) + self.weight.T @ self.weight / SIGMA**2
        mean = torch.linalg.solve(precision, self.weight.T @ (images.flatten(1) - 0.5).T / SIGMA**2).T
        return Posterior(mean, (self.widening / precision.diagonal()).log().expand_as(mean))

    def decode(self, latent: Tensor) -> Tensor:
        return (latent @ self.weight.T + 0.5).view(-1, 1, SIZE, SIZE)

    def exact(self, images: Tensor) -> float:
        """log P of 8-bit pixels, for a density that hardly changes over a level."""
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(SIZE**2)
        density = MultivariateNormal(torch.full((SIZE**2,), 0.5), covariance).log_prob(images.flatten(1))
        return float((density + SIZE**2 * math.log(objective.LEVEL_WIDTH)).mean().detach())


def bounds(model: Any, num_importance_samples: int) -> tuple[float, float, float]:
    """ELBO, importance-weighted bound and exact log-likelihood of images drawn from the linear model."""
    with torch.no_grad():
        clean = model.decode(torch.randn(40, LATENT, generator=torch.Generator().manual_seed(1)))
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    images = (noisy.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    table = likelihood_table(
        model,
        images,
        encode_all(model, images),
        "gaussian",
        {"trained": torch.tensor(math.log(SIGMA))},
        {"normal": StandardNormal(LATENT)},
        num_importance_samples=num_importance_samples,
        batch_size=7,
        seed=0,
    )
    row = table.iloc[0]
    assert row["elbo_bits_per_dimension"] == pytest.approx(-row["elbo_nats"] / (SIZE**2 * math.log(2)))
    weighted_bits = -row["importance_weighted_nats"] / (SIZE**2 * math.log(2))
    assert row["importance_weighted_bits_per_dimension"] == pytest.approx(weighted_bits)
    exact = model.exact(to_unit_range(images, torch.device("cpu")))
    return row["elbo_nats"], row["importance_weighted_nats"], exact


def test_bounds_reach_the_exact_likelihood_of_a_linear_model() -> None:
    elbo, weighted, exact = bounds(LinearVAE(), num_importance_samples=300)
    assert elbo < weighted
    assert weighted == pytest.approx(exact, abs=0.05)


def test_importance_weights_correct_a_too_wide_posterior() -> None:
    elbo, weighted, exact = bounds(LinearVAE(widening=9.0), num_importance_samples=1000)
    assert elbo < exact - 3
    assert weighted == pytest.approx(exact, abs=0.2)
    _, with_few, _ = bounds(LinearVAE(widening=9.0), num_importance_samples=3)
    assert elbo < with_few < weighted


@pytest.mark.parametrize("likelihood", ["squared_error", "gaussian", "bernoulli"])
def test_one_sample_gives_the_elbo_for_any_batch_size(likelihood: Any) -> None:
    images = disc_images(11)
    if likelihood == "bernoulli":
        images = np.where(images > 99, np.uint8(255), np.uint8(0))
    torch.manual_seed(0)
    model = VAE(small_params().model, 8, 3).eval()
    posteriors = encode_all(model, images)
    log_sigmas = {"trained": model.log_sigma.detach(), "calibrated": torch.tensor(-2.0)}
    first, second = (
        likelihood_table(
            model,
            images,
            posteriors,
            likelihood,
            log_sigmas,
            {"normal": StandardNormal(3)},
            num_importance_samples=1,
            batch_size=size,
            seed=0,
        )
        for size in (3, 100)
    )
    assert first["elbo_nats"].to_list() == pytest.approx(second["elbo_nats"].to_list())
    assert first["elbo_nats"].to_list() == pytest.approx(first["importance_weighted_nats"].to_list(), rel=1e-5)
    assert first["sigma"].to_list() == ["trained", "calibrated"]
    latent = posteriors.sample(torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch, reconstruction = to_unit_range(images, torch.device("cpu")), model.decode(latent)
    if likelihood == "bernoulli":
        nats = -torch.distributions.Bernoulli(reconstruction).log_prob(batch).sum((1, 2, 3))
    else:
        nats = objective.discrete_nats(likelihood, reconstruction, batch, model.log_sigma.detach())
    prior, posterior = torch.distributions.Normal(0.0, 1.0), posteriors
    log_ratio = prior.log_prob(latent).sum(1) - torch.distributions.Normal(
        posterior.mean, (0.5 * posterior.log_variance).exp()
    ).log_prob(latent).sum(1)
    assert first["elbo_nats"][0] == pytest.approx(float((log_ratio - nats).mean()), rel=1e-5)


def test_calibrated_sigma_maximises_the_likelihood() -> None:
    images, reconstruction = torch.rand(9, 3, 4, 4), torch.rand(9, 3, 4, 4)
    best = calibrated_log_sigma(float(objective.squared_error(reconstruction, images).mean()), 48)
    nats = [float(objective.gaussian_nats(reconstruction, images, best + step).mean()) for step in (-0.05, 0, 0.05)]
    assert nats[1] == min(nats)
    assert float(calibrated_log_sigma(1e-12, 48)) == objective.LOG_SIGMA_FLOOR


def test_each_prior_has_its_own_bound() -> None:
    images = disc_images(11)
    torch.manual_seed(0)
    model = VAE(small_params().model, 8, 3).eval()
    posteriors = encode_all(model, images)
    one = torch.ones(1, dtype=torch.float64)
    wide = Mixture(one, one.new_zeros(1, 3), 3 * torch.eye(3, dtype=torch.float64)[None])
    table = likelihood_table(
        model,
        images,
        posteriors,
        "squared_error",
        {"trained": model.log_sigma.detach()},
        {"normal": StandardNormal(3), "wide": wide},
        num_importance_samples=1,
        batch_size=5,
        seed=0,
    ).set_index("prior")
    latent = posteriors.sample(torch.Generator().manual_seed(0))
    wider, prior = torch.distributions.Normal(0.0, 3.0), torch.distributions.Normal(0.0, 1.0)
    gain = float((wider.log_prob(latent) - prior.log_prob(latent)).sum(1).mean())
    assert table["elbo_nats"]["wide"] - table["elbo_nats"]["normal"] == pytest.approx(gain, abs=1e-3)
