import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from facevae.evaluate.latent import active_units, aggregate_kl_nats, latent_table
from facevae.model.vae import Posterior

GENERATOR = torch.Generator().manual_seed(0)
MIXING = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]])
MEAN = torch.randn(20_000, 3, generator=GENERATOR) @ MIXING + torch.tensor([0.0, 0.4, 0.0])
POSTERIORS = Posterior(MEAN, torch.tensor([0.1, 0.5, 1.0]).log().expand(20_000, 3))


def test_active_units_have_varying_means() -> None:
    means = torch.randn(5000, 4, generator=GENERATOR) * torch.tensor([1.0, 0.12, 0.08, 0.0]) + 3
    assert active_units(means) == 2


def test_aggregate_moments_match_drawn_latents() -> None:
    drawn = POSTERIORS.sample(GENERATOR)
    mean, covariance = POSTERIORS.aggregate_moments()
    torch.testing.assert_close(mean.float(), drawn.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(covariance.float(), drawn.T.cov(), atol=0.03, rtol=0)


def test_aggregate_kl_matches_torch_distributions() -> None:
    gaussian = MultivariateNormal(*POSTERIORS.aggregate_moments())
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    assert aggregate_kl_nats(POSTERIORS) == pytest.approx(float(kl_divergence(gaussian, prior)))


def test_posteriors_equal_to_the_prior_have_no_aggregate_kl() -> None:
    posteriors = Posterior(torch.zeros(10, 4), torch.zeros(10, 4))
    assert aggregate_kl_nats(posteriors) == pytest.approx(0)
    assert active_units(posteriors.mean) == 0


def test_latent_table_sorts_dimensions_by_kl() -> None:
    table = latent_table(POSTERIORS)
    assert table["rank"].to_list() == [1, 2, 3]
    assert table["dimension"].to_list() == [0, 1, 2]
    assert latent_table(Posterior(MEAN.flip(1), POSTERIORS.log_variance.flip(1)))["dimension"].to_list() == [2, 1, 0]
    assert table["kl_nats"].is_monotonic_decreasing
    assert table["mean_variance"].to_list() == pytest.approx([1.0, 0.25 + 0.09, 0.0], abs=0.03)
    assert table["aggregate_mean"].to_list() == pytest.approx([0.0, 0.4, 0.0], abs=0.03)
    assert table["aggregate_variance"].to_list() == pytest.approx([1.1, 0.84, 1.0], abs=0.03)
