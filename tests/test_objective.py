import math

import pytest
import torch
from conftest import small_params
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence

from facevae.config.schema import Likelihood
from facevae.model import objective
from facevae.model.vae import VAE, Posterior

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(5, 3, 4, 4, generator=GENERATOR)
RECONSTRUCTION = torch.rand(5, 3, 4, 4, generator=GENERATOR) * 0.98 + 0.01


def test_kl_matches_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 7, generator=GENERATOR), torch.randn(5, 7, generator=GENERATOR)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    posterior = Posterior(mean, log_variance)
    torch.testing.assert_close(objective.kl_nats_per_dimension(posterior), expected)
    torch.testing.assert_close(objective.kl_nats(posterior), expected.sum(1))


def test_kl_of_the_prior_is_zero() -> None:
    assert objective.kl_nats(Posterior(torch.zeros(2, 3), torch.zeros(2, 3))).tolist() == [0, 0]


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_gaussian_matches_torch_distributions(sigma: float) -> None:
    expected = -Independent(Normal(RECONSTRUCTION, sigma), 3).log_prob(IMAGES)
    found = objective.gaussian_nats(RECONSTRUCTION, IMAGES, torch.tensor(math.log(sigma)))
    torch.testing.assert_close(found, expected)


def test_bernoulli_matches_torch_distributions() -> None:
    binary = (IMAGES >= 0.5).float()
    expected = -Independent(Bernoulli(RECONSTRUCTION), 3).log_prob(binary)
    logits = RECONSTRUCTION.logit()
    torch.testing.assert_close(objective.bernoulli_nats(logits, binary), expected)
    term = objective.discrete_nats("bernoulli", logits, binary, torch.tensor(0.0))
    torch.testing.assert_close(term, expected)


@pytest.mark.parametrize("size", [5.0, 17.0, 90.0, 2000.0])
def test_wrong_black_or_white_pixels_cost_their_logit(size: float) -> None:
    """-log sigmoid(-x) is x + log(1 + exp(-x)), and its slope is sigmoid(x)."""
    logits = torch.tensor([size, -size]).view(2, 1, 1, 1).requires_grad_()
    wrong = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    nats = objective.reconstruction_term("bernoulli", logits, wrong, torch.tensor(0.0))
    assert nats.tolist() == pytest.approx(2 * [size + math.log1p(math.exp(-size))])
    nats.sum().backward()
    assert logits.grad is not None
    slope = 1 / (1 + math.exp(-size))
    assert logits.grad.flatten().tolist() == pytest.approx([slope, -slope])


@pytest.mark.parametrize("likelihood", ["squared_error", "gaussian", "bernoulli"])
def test_only_the_bernoulli_is_predicted_by_logits(likelihood: Likelihood) -> None:
    torch.manual_seed(0)
    model = VAE(small_params().model, 8, 1)
    latent = torch.randn(4, 3)
    prediction = objective.predict(model, likelihood, latent)
    expected = model.decode(latent)
    torch.testing.assert_close(torch.sigmoid(prediction) if likelihood == "bernoulli" else prediction, expected)
    assert 0 < expected.min().item() < expected.max().item() < 1


def test_squared_error_is_a_gaussian_without_its_constant() -> None:
    gaussian = -Independent(Normal(RECONSTRUCTION, math.sqrt(0.5)), 3).log_prob(IMAGES)
    term = objective.reconstruction_term("squared_error", RECONSTRUCTION, IMAGES, torch.tensor(0.0))
    torch.testing.assert_close(term, gaussian - 48 * 0.5 * math.log(math.pi))
    torch.testing.assert_close(term, ((RECONSTRUCTION - IMAGES) ** 2).sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("likelihood", "distribution"),
    [("gaussian", Normal(RECONSTRUCTION, 0.3)), ("bernoulli", Bernoulli(RECONSTRUCTION))],
)
def test_reconstruction_term_follows_the_likelihood(likelihood: Likelihood, distribution: Distribution) -> None:
    binary = (IMAGES >= 0.5).float()
    prediction = RECONSTRUCTION.logit() if likelihood == "bernoulli" else RECONSTRUCTION
    term = objective.reconstruction_term(likelihood, prediction, binary, torch.tensor(math.log(0.3)))
    torch.testing.assert_close(term, -Independent(distribution, 3).log_prob(binary))


@pytest.mark.parametrize("sigma", [math.exp(objective.LOG_SIGMA_FLOOR), 0.03, 0.5])
def test_discrete_nats_match_the_mean_density_over_a_level(sigma: float) -> None:
    levels = (IMAGES.double() * 255).round() / 255
    reconstruction = levels + 0.5 * sigma
    offsets = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000 - 0.5) / 255
    likelihood = Normal(reconstruction, sigma)
    densities = torch.stack([likelihood.log_prob(levels + offset).sum((1, 2, 3)) for offset in offsets])
    log_sigma = torch.tensor(math.log(sigma), dtype=torch.float64)
    found = objective.discrete_nats("gaussian", reconstruction, levels, log_sigma)
    torch.testing.assert_close(found, -densities.mean(0) + 48 * math.log(255), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("sigma", "slack"), [(0.03, 0.02), (0.1, 0.002), (math.sqrt(0.5), 1e-4)])
def test_discrete_nats_bound_the_exact_nats_from_above(sigma: float, slack: float) -> None:
    """The exact probability of a level is the difference of the cumulative distribution at its ends."""
    levels = (IMAGES.double() * 255).round() / 255
    noise = torch.randn(levels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reconstruction = levels + sigma * noise
    likelihood = Normal(reconstruction, sigma)
    exact = -(likelihood.cdf(levels + 0.5 / 255) - likelihood.cdf(levels - 0.5 / 255)).log().sum((1, 2, 3))
    log_sigma = torch.tensor(math.log(sigma), dtype=torch.float64)
    found = objective.discrete_nats("gaussian", reconstruction, levels, log_sigma)
    assert (found >= exact - 1e-6).all()
    assert (found - exact < 48 * slack).all()


def test_elbo_of_a_linear_model_is_tight_at_its_posterior() -> None:
    """x = w z + noise has a known likelihood; reconstruction + KL at the exact posterior must equal it."""
    variance, weight = 0.09, torch.linspace(-1, 1, 48)
    precision = 1 + weight.square().sum() / variance
    image = IMAGES[:1]
    mean = (weight @ image.flatten()) / variance / precision
    posterior = Posterior(mean.view(1, 1), -precision.log().view(1, 1))
    latent = torch.cat([posterior.sample(GENERATOR) for _ in range(20_000)])
    reconstruction = (latent * weight).view(-1, 3, 4, 4)
    sigma = torch.tensor(0.5 * math.log(variance))
    nats = objective.gaussian_nats(reconstruction, image.expand_as(reconstruction), sigma).mean()
    covariance = torch.outer(weight, weight) + variance * torch.eye(48)
    exact = -torch.distributions.MultivariateNormal(torch.zeros(48), covariance).log_prob(image.flatten())
    torch.testing.assert_close(nats + objective.kl_nats(posterior)[0], exact, rtol=0.02, atol=0.2)


def test_importance_weighted_terms_add_up_to_the_bound_and_its_gradient() -> None:
    """The bound is log mean exp(log p(x, z) - log q(z)), with densities by torch.distributions."""
    mean, log_variance = (torch.randn(4, 3, generator=GENERATOR).requires_grad_() for _ in range(2))
    noise, slopes = torch.randn(6, 4, 3, generator=GENERATOR), torch.randn(3, generator=GENERATOR)

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        latent = mean + (0.5 * log_variance).exp() * noise
        return latent, (latent @ slopes).square()  # stands for -log P(image | latent)

    latent, errors = drawn()
    reconstruction, kl = objective.importance_weighted_terms(errors, latent, Posterior(mean, log_variance))
    found = torch.autograd.grad((reconstruction + kl).sum(), (mean, log_variance))
    latent, errors = drawn()
    log_posterior = Normal(mean, (0.5 * log_variance).exp()).log_prob(latent).sum(2)
    log_weights = Normal(0.0, 1.0).log_prob(latent).sum(2) - log_posterior - errors
    bound = math.log(6) - log_weights.logsumexp(0)
    torch.testing.assert_close(reconstruction + kl, bound)
    weights = log_weights.softmax(0)
    torch.testing.assert_close(reconstruction, (weights * errors).sum(0))
    torch.testing.assert_close(found, torch.autograd.grad(bound.sum(), (mean, log_variance)))
