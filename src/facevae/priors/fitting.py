"""Distributions over the latent from which samples are decoded, fitted to the posteriors of the training images.

A calibrated likelihood leaves the aggregate posterior q(z), the mean of q(z|x) over the images, far from the N(0, I)
that the objective assumes: what is drawn from N(0, I) then decodes to ghosts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from facevae.concurrency import seeded, side_by_side
from facevae.errors import UserError
from facevae.model.vae import Posterior
from facevae.priors.comparison import PriorScores, compare_priors
from facevae.priors.copies import draws_new
from facevae.priors.flow_fitting import fit_flow_matching
from facevae.priors.flow_matching import FlowMatching
from facevae.priors.mixture import Mixture, fit_mixture
from facevae.priors.normal import Prior, StandardNormal
from facevae.priors.velocity import Velocity
from facevae.storage.tensors import check_tensors, read_tensors, require_model, write_tensors

PRIORS = ("normal", "mixture", "flow")


@dataclass(frozen=True)
class FittedPriors:
    """The priors of one model, and the scores of each."""

    normal: StandardNormal
    mixture: Mixture
    flow: FlowMatching
    scores: dict[str, PriorScores]

    @property
    def priors(self) -> dict[str, Prior]:
        """Each prior by its name: normal, mixture, flow."""
        return {"normal": self.normal, "mixture": self.mixture, "flow": self.flow}

    @property
    def best(self) -> str:
        """The prior whose samples come nearest to validation images, among those that do not repeat training images."""
        own = {
            name: scores.validation_frechet_distance
            for name, scores in self.scores.items()
            if draws_new(name, scores.copied_share)
        }
        return min(own, key=own.__getitem__)


class PriorsHeader(BaseModel):
    """The training whose latent space the priors cover, the attributes of the flow, and the scores of each prior."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    attributes: tuple[str, ...]
    scores: dict[str, PriorScores]


def fit_priors(
    train: Posterior,
    validation: Posterior,
    labels: Tensor,
    attributes: tuple[str, ...],
    distance: Callable[[Tensor], float],
    *,
    num_samples: int,
    temperature: float = 1.0,
    seed: int,
) -> FittedPriors:
    """Fit all priors to the training posteriors and compare them on validation images.

    One draw from each validation posterior also chooses the number of components and the flow's step, so that its
    density under these two is slightly too high.

    Parameters
    ----------
    train, validation
        Posteriors of the images of each split, on the CPU.
    labels, attributes
        Of the training images: (num_train, num_attributes), 1 or -1, and the names.
    distance
        How far the pictures of latents (num_samples, latent_dim) are from validation images.
    num_samples, temperature
        Of the draws that are compared.
    seed
        Determines the draws, the initial mixtures, and the flow's weights.
    """
    heldout = validation.sample(torch.Generator().manual_seed(seed))
    normal = StandardNormal(heldout.shape[1])
    import sklearn.mixture  # noqa: F401 - brings thread pools of its own: those loaded later are not limited

    flow, mixture = side_by_side(
        partial(fit_flow_matching, train, heldout, labels, attributes, seed=seed),
        partial(fit_mixture, train, heldout, seed=seed),
    )
    priors: dict[str, Prior] = {"normal": normal, "mixture": mixture, "flow": flow}
    scores = compare_priors(
        priors, train.mean, heldout, distance, num_samples=num_samples, temperature=temperature, seed=seed
    )
    return FittedPriors(normal, mixture, flow, scores)


def save_priors(path: Path, fitted: FittedPriors, *, fingerprint: str) -> None:
    """Write the priors of the model whose training has this fingerprint; the same priors give the same bytes."""
    header = PriorsHeader(fingerprint=fingerprint, attributes=fitted.flow.attributes, scores=fitted.scores)
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
    factors, labels = (
        tuple(tensors[name].shape) if name in tensors else () for name in ("mixture.factors", "flow.examples")
    )
    is_square = len(factors) == 3 and 0 not in factors and factors[1] == factors[2]
    if not is_square or len(labels) != 2 or labels[0] == 0 or header.scores.keys() != set(PRIORS):
        raise UserError(f"{path} holds no priors of this version of facevae: make it anew by `dvc repro evaluate`")
    num_components, latent_dim, _ = factors
    parts = [torch.empty(num_components, *[latent_dim] * rank, dtype=torch.float64) for rank in range(3)]
    with seeded(0):
        velocity = Velocity(latent_dim, len(header.attributes))  # draws weights that are replaced at once
    examples = torch.empty(1, len(header.attributes), dtype=torch.int8).expand(labels[0], -1)
    sketch = FlowMatching(velocity, parts[1][0], parts[2][0], header.attributes, examples)
    check_tensors(path, _tensors_of(Mixture(*parts), sketch), tensors)
    require_model(path, header.fingerprint, fingerprint)
    velocity.load_state_dict({name: tensors[f"velocity.{name}"] for name in velocity.state_dict()})
    velocity.requires_grad_(False).eval()
    mean, factor, examples = (tensors[f"flow.{name}"] for name in ("mean", "factor", "examples"))
    flow = FlowMatching(velocity, mean, factor, header.attributes, examples)
    mixture = Mixture(*(tensors[f"mixture.{name}"] for name in ("weights", "means", "factors")))
    return FittedPriors(StandardNormal(latent_dim), mixture, flow, header.scores)


def _tensors_of(mixture: Mixture, flow: FlowMatching) -> dict[str, Tensor]:
    """All that a file of priors holds, by name."""
    return {
        **{f"velocity.{name}": tensor for name, tensor in flow.velocity.state_dict().items()},
        **{f"flow.{name}": getattr(flow, name) for name in ("mean", "factor", "examples")},
        **{f"mixture.{name}": getattr(mixture, name) for name in ("weights", "means", "factors")},
    }
