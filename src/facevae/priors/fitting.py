"""Distributions over the latent from which samples are decoded, fitted to the posteriors of the training images.

A calibrated likelihood leaves the aggregate posterior q(z), the mean of q(z|x) over the images, far from the N(0, I)
that the objective assumes: what is drawn from N(0, I) then decodes to noise. How well a prior covers q(z) is measured
by the mean of log p(z) over validation images, each z drawn from its image's posterior.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from facevae.errors import UserError
from facevae.model.vae import Posterior
from facevae.priors.coupling_flow import Flow, fit_flow
from facevae.priors.mixture import Mixture, fit_mixture
from facevae.priors.normal import Prior, StandardNormal, mean_log_prob
from facevae.storage.tensors import check_tensors, read_tensors, require_model, write_tensors

PRIORS = ("normal", "mixture", "flow")


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


class PriorsHeader(BaseModel):
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


def save_priors(path: Path, fitted: FittedPriors, *, fingerprint: str) -> None:
    """Write the priors of the model whose training has this fingerprint; the same priors give the same bytes."""
    header = PriorsHeader(fingerprint=fingerprint, heldout_nats=fitted.heldout_nats)
    write_tensors(path, _tensors_of(fitted.mixture, fitted.flow), header)


def load_priors(path: Path, *, fingerprint: str) -> FittedPriors:
    """Read the priors, and see that they belong to the model whose training has this fingerprint.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another model.
    """
    remedy = "make it by `dvc repro evaluate`, or name another file of priors"
    tensors, header = read_tensors(path, PriorsHeader, remedy=remedy)
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
