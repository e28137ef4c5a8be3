"""Distributions over the latent from which samples are decoded, fitted to the posteriors of the training images.

A calibrated likelihood leaves the aggregate posterior q(z), the mean of q(z|x) over the images, far from the N(0, I)
that the objective assumes: what is drawn from N(0, I) then decodes to noise. How well a prior covers q(z) is measured
by the mean of log p(z) over validation images, each z drawn from its image's posterior.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from facevae.errors import UserError
from facevae.flow import Flow, aggregate_gaussian, fit_flow, standard_normal_log_prob, whiten
from facevae.model import Posterior
from facevae.tensor_file import check_tensors, read_tensors, require_model, write_tensors

PRIORS = ("normal", "mixture", "flow")
NUM_COMPONENTS = (2, 4, 8)  # beside one, which needs no fit; 16 lost on every model tried, and cost most
DRAWS_PER_POSTERIOR = 4  # one leaves the covariances so noisy that more components only lose
MAX_DRAWS = 30_000  # in all, so that the fit takes seconds on any set
REGULARIZATION = 0.01  # added to each variance, in units of the aggregate posterior's own
MAX_ITERATIONS = 40
TOLERANCE_NATS = 0.001  # a larger one ends on the plateau where two components are still one


class Prior(Protocol):
    """What samples come from; on the CPU."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw latents (num_samples, latent_dim)."""

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""


@dataclass(frozen=True)
class StandardNormal:
    """N(0, I), the prior of the objective."""

    latent_dim: int

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw latents (num_samples, latent_dim)."""
        return torch.randn(num_samples, self.latent_dim, generator=generator)

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""
        return standard_normal_log_prob(latent)


@dataclass(frozen=True)
class Mixture:
    """Gaussians of full covariance (Ghosh et al. 2020, arXiv 1903.12436, section 4).

    `weights` (component,) sum to 1, `means` are (component, latent_dim), and `factors` (component, latent_dim,
    latent_dim) the lower Cholesky factors of the covariances; all float64.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw latents (num_samples, latent_dim)."""
        component = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        noise = torch.randn(num_samples, self.means.shape[1], generator=generator, dtype=torch.float64)
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


@dataclass(frozen=True)
class FittedPriors:
    """The priors of one model, and the mean log density in nats that each gives to held-out latents."""

    normal: StandardNormal
    mixture: Mixture
    flow: Flow
    heldout_nats: dict[str, float]

    @property
    def priors(self) -> dict[str, Prior]:
        """Each prior by its name: normal, mixture, flow."""
        return {"normal": self.normal, "mixture": self.mixture, "flow": self.flow}

    @property
    def best(self) -> str:
        """The name of the prior that gives most to held-out latents."""
        return max(self.heldout_nats, key=self.heldout_nats.__getitem__)


class Header(BaseModel):
    """The training whose latent space the priors cover, and how well each does."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    fingerprint: str
    heldout_nats: dict[str, float]


def fit_priors(train: Posterior, validation: Posterior, *, seed: int) -> FittedPriors:
    """Fit all priors to the training posteriors and compare them on one draw from each validation posterior.

    The same draws choose the number of components and the flow's step, so that their comparison with N(0, I) is
    slightly in their favour.

    Parameters
    ----------
    train, validation
        Posteriors of the images of each split, on the CPU.
    seed
        Determines the draws, the initial mixtures, and the flow's weights, order and dropout.
    """
    heldout = validation.sample(torch.Generator().manual_seed(seed))
    normal = StandardNormal(heldout.shape[1])
    with _one_thread():
        mixture = fit_mixture(train, heldout, seed=seed)
        flow = fit_flow(train, heldout, seed=seed)
    priors: dict[str, Prior] = {"normal": normal, "mixture": mixture, "flow": flow}
    nats = {name: mean_log_prob(prior, heldout) for name, prior in priors.items()}
    return FittedPriors(normal, mixture, flow, nats)


@contextmanager
def _one_thread() -> Iterator[None]:
    """k-means adds up in whatever order its threads end, and on tensors so small threads cost more than they bring."""
    import sklearn.mixture  # noqa: F401 - brings thread pools of its own: those loaded later are not limited
    from threadpoolctl import threadpool_limits

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(num_threads)


@torch.no_grad()
def mean_log_prob(prior: Prior, latent: Tensor) -> float:
    """The mean log density of latents (batch, latent_dim) in nats."""
    return float(prior.log_prob(latent).double().mean())


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


def save_priors(path: Path, fitted: FittedPriors, *, fingerprint: str) -> None:
    """Write the priors of the model whose training has this fingerprint; the same priors give the same bytes."""
    header = Header(fingerprint=fingerprint, heldout_nats=fitted.heldout_nats)
    write_tensors(path, _tensors_of(fitted.mixture, fitted.flow), header)


def load_priors(path: Path, *, fingerprint: str) -> FittedPriors:
    """Read the priors, and see that they belong to the model whose training has this fingerprint.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another model.
    """
    remedy = "make it by `dvc repro evaluate`, or name another file of priors"
    tensors, header = read_tensors(path, Header, remedy=remedy)
    shape = tuple(tensors["mixture.factors"].shape) if "mixture.factors" in tensors else ()
    if len(shape) != 3 or 0 in shape or shape[1] != shape[2] or header.heldout_nats.keys() != set(PRIORS):
        raise UserError(f"{path} holds no priors of this version of facevae: make it anew by `dvc repro evaluate`")
    num_components, latent_dim, _ = shape
    parts = [torch.empty(num_components, *[latent_dim] * rank, dtype=torch.float64) for rank in range(3)]
    with torch.random.fork_rng(devices=[]):
        flow = Flow(latent_dim)  # draws weights that are replaced at once
    check_tensors(path, _tensors_of(Mixture(*parts), flow), tensors)
    flow.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("flow.")})
    flow.eval()
    require_model(path, header.fingerprint, fingerprint)
    mixture = Mixture(*(tensors[f"mixture.{name}"] for name in ("weights", "means", "factors")))
    return FittedPriors(StandardNormal(latent_dim), mixture, flow, header.heldout_nats)


def _tensors_of(mixture: Mixture, flow: Flow) -> dict[str, Tensor]:
    """All that a file of priors holds, by name."""
    tensors = {f"flow.{name}": tensor for name, tensor in flow.state_dict().items()}
    return tensors | {f"mixture.{name}": getattr(mixture, name) for name in ("weights", "means", "factors")}
