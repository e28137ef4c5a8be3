"""Whether a prior draws latents of training images instead of new ones."""

import torch
from torch import Tensor

MAX_QUERIES = 600
HELDOUT_SHARE = 0.05  # of held-out latents count as copies: the sets may hold near-duplicates
LARGEST_SHARE = 0.5  # of samples that may be copies


def copied_share(samples: Tensor, heldout: Tensor, train: Tensor) -> float:
    """Share of samples that lie nearer to a training latent than 95 % of the held-out latents do.

    A prior that generalises gives about 0.05; one that repeats the training latents gives 1.

    Parameters
    ----------
    samples, heldout
        Draws from the prior and from the posteriors of held-out images, each (N, latent_dim).
    train
        Means of the posteriors of the training images, (num_train, latent_dim).
    """
    limit = _nearest(heldout[:MAX_QUERIES], train).quantile(HELDOUT_SHARE)
    return float((_nearest(samples[:MAX_QUERIES], train) < limit).double().mean())


def draws_new(name: str, share: float) -> bool:
    """Whether the prior of this name, with this share of copies, draws new latents. N(0, I) has seen no image."""
    return name == "normal" or share <= LARGEST_SHARE


def _nearest(queries: Tensor, references: Tensor) -> Tensor:
    """Distance of each query to the nearest reference, (N,) float64."""
    nearest = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    for batch in references.double().split(10_000):
        nearest = torch.minimum(nearest, torch.cdist(queries.double(), batch).amin(1))
    return nearest
