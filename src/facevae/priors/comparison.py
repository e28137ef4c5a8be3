"""Which prior suits a model: its density of held-out latents, and its samples beside validation images."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from statistics import fmean

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from facevae.priors.copies import copied_share, draws_new
from facevae.priors.normal import Prior, mean_log_prob

NEAR = 1.5  # times the lowest distance: one set of samples does not tell such priors apart
NUM_SETS = 4  # of samples, which do


class PriorScores(BaseModel):
    """What validation images tell about a prior.

    Attributes
    ----------
    heldout_nats
        Mean log density of a draw from each posterior.
    validation_frechet_distance
        Of decoded samples to the images; for priors that are close, the mean over several sets of samples.
    copied_share
        Share of the samples that are nearer to a training latent than nearly all of those draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    heldout_nats: float
    validation_frechet_distance: float
    copied_share: float


def compare_priors(
    priors: Mapping[str, Prior],
    train: Tensor,
    heldout: Tensor,
    distance: Callable[[Tensor], float],
    *,
    num_samples: int,
    temperature: float,
    seed: int,
) -> dict[str, PriorScores]:
    """Score priors by name. Those that copy are not compared further.

    Parameters
    ----------
    train, heldout
        Means of the posteriors of the training images, and draws from those of validation images.
    distance
        How far the pictures of latents (num_samples, latent_dim) are from validation images.
    num_samples, temperature, seed
        Of the draws that are compared.
    """
    sets = {name: _sets(prior, num_samples, temperature, seed) for name, prior in priors.items()}
    first = {name: next(latents) for name, latents in sets.items()}
    distances = {name: distance(latent) for name, latent in first.items()}
    copied = {name: copied_share(latent, heldout, train) for name, latent in first.items()}
    new = [name for name in priors if draws_new(name, copied[name])]
    near = [name for name in new if distances[name] <= NEAR * min(distances[other] for other in new)]
    if len(near) > 1:
        for name in near:
            further = [distance(latent) for latent in islice(sets[name], NUM_SETS - 1)]
            distances[name] = fmean([distances[name], *further])
    return {
        name: PriorScores(
            heldout_nats=mean_log_prob(prior, heldout),
            validation_frechet_distance=distances[name],
            copied_share=copied[name],
        )
        for name, prior in priors.items()
    }


def _sets(prior: Prior, num_samples: int, temperature: float, seed: int) -> Iterator[Tensor]:
    """Any number of sets of samples, each (num_samples, latent_dim)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield prior.sample(num_samples, generator, temperature=temperature)
