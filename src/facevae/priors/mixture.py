"""A mixture of Gaussians fitted to the aggregate posterior."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.model.vae import Posterior
from facevae.priors.normal import aggregate_gaussian, mean_log_prob, standard_normal_log_prob, whiten

NUM_COMPONENTS = (2, 4, 8)  # beside one, which needs no fit; 16 lost on every model tried, and cost most
DRAWS_PER_POSTERIOR = 4  # one leaves the covariances noisy
MAX_DRAWS = 20_000  # in all, so that the fit takes seconds on any set
REGULARIZATION = 0.01  # added to each variance, in units of the aggregate posterior's own
MAX_ITERATIONS = 40
TOLERANCE_NATS = 0.001  # a larger one ends on the plateau where two components are still one


@dataclass(frozen=True)
class Mixture:
    """Gaussians of full covariance (Ghosh et al. 2020, arXiv 1903.12436, section 4).

    `weights` (component,) sum to 1, `means` are (component, latent_dim), and `factors` (component, latent_dim,
    latent_dim) the lower Cholesky factors of the covariances; all float64.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """Draw latents (num_samples, latent_dim); the temperature scales the components, not their distances."""
        component = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        noise = temperature * torch.randn(num_samples, self.means.shape[1], generator=generator, dtype=torch.float64)
        latent = self.means[component]
        for i, factor in enumerate(self.factors):
            latent[component == i] += noise[component == i] @ factor.T
        return latent.float()

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""
        joint = [
            weight.log() + standard_normal_log_prob(whiten(latent, mean, factor)) - factor.diagonal().log().sum()
            for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True)
        ]
        return torch.stack(joint).logsumexp(0).float()


def fit_mixture(train: Posterior, heldout: Tensor, *, seed: int) -> Mixture:
    """The Gaussian of the aggregate posterior's moments, or as many Gaussians as suit `heldout` best.

    The Gaussians are fitted to whitened latents, so that one regularisation suits every dimension, collapsed or not.
    `heldout` are latents (batch, latent_dim).
    """
    mean, factor = aggregate_gaussian(train)
    best = Mixture(torch.ones(1, dtype=torch.float64), mean[None], factor[None])
    whitened = whiten(_draws(train, seed), mean, factor).float()
    for num_components in NUM_COMPONENTS:
        if num_components > len(train.mean):
            break
        # All are tried: two may end in a poor optimum where four do not.
        weights, means, covariances = _expectation_maximization(whitened, num_components, seed)
        mixture = Mixture(weights, mean + means @ factor.T, factor @ torch.linalg.cholesky(covariances))
        best = max(best, mixture, key=lambda candidate: mean_log_prob(candidate, heldout))
    return best


def _draws(posterior: Posterior, seed: int) -> Tensor:
    """Several draws from each posterior, or one from some of them where there are very many."""
    generator = torch.Generator().manual_seed(seed)
    num_repeats = max(1, min(DRAWS_PER_POSTERIOR, MAX_DRAWS // len(posterior.mean)))
    latent = torch.cat([posterior.sample(generator) for _ in range(num_repeats)])
    return latent[torch.randperm(len(latent), generator=generator)[:MAX_DRAWS]]


def _expectation_maximization(latent: Tensor, num_components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of a Gaussian mixture of latents (N, latent_dim), as float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        num_components,
        reg_covar=REGULARIZATION,
        tol=TOLERANCE_NATS,
        max_iter=MAX_ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():  # where it ends before it converges, held-out latents judge what it has reached
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(latent.numpy())
    weights, means, covariances = mixture.weights_, mixture.means_, mixture.covariances_
    return torch.from_numpy(weights).double(), torch.from_numpy(means).double(), torch.from_numpy(covariances).double()
