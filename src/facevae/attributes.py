"""Directions in latent space that stand for attributes: fit, apply, score, keep. The latent arithmetic."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from facevae.checkpoint import read_tensors, write_tensors
from facevae.errors import UserError

Directions = dict[str, Tensor]


class Header(BaseModel):
    """The training whose latent space the directions lie in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str


def fit_directions(means: Tensor, attributes: pd.DataFrame) -> Directions:
    """For each attribute the mean latent of the images that have it less that of those that have not.

    So a step of 1 along a direction leads from the average image without the attribute to the average one with it
    (Larsen et al. 2016, arXiv 1512.09300, section 3.2).

    Parameters
    ----------
    means
        Posterior means, (N, latent_dim).
    attributes
        Values 0 and 1, one row an image. Attributes that all images share are left out.
    """
    directions = {}
    for name in attributes.columns:
        has = torch.from_numpy(attributes[name].to_numpy(dtype=bool, copy=True))
        if has.any() and not has.all():
            directions[name] = means[has].mean(0) - means[~has].mean(0)
    return directions


def edit(latent: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Latents (..., latent_dim) moved along a direction (latent_dim,)."""
    return latent + strength * direction


def auc_table(means: Tensor, attributes: pd.DataFrame, directions: Directions) -> pd.DataFrame:
    """How well each direction ranks images that it was not fitted on.

    Returns
    -------
    pandas.DataFrame
        attribute, auc (of the projection on the direction; 0.5 is chance), num_with, num_without; by falling AUC.
        Attributes that all these images share are left out.
    """
    rows = []
    for name, direction in directions.items():
        has = attributes[name].to_numpy(dtype=bool)
        if has.any() and not has.all():
            rows.append((name, area_under_curve((means @ direction).numpy(), has), int(has.sum()), int((~has).sum())))
    table = pd.DataFrame(rows, columns=["attribute", "auc", "num_with", "num_without"])
    return table.sort_values("auc", ascending=False, kind="stable")


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative (Mann and Whitney 1947).

    Parameters
    ----------
    scores
        Shape (N,).
    labels
        Shape (N,), bool; some true, some false.
    """
    ranks = pd.Series(scores).rank().to_numpy()  # equal scores share their mean rank
    num_positive, num_negative = labels.sum(), (~labels).sum()
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def save_directions(path: Path, directions: Directions, *, fingerprint: str) -> None:
    """Write the directions of the model whose training has this fingerprint."""
    tensors = {name: vector.contiguous() for name, vector in directions.items()}
    write_tensors(path, tensors, Header(fingerprint=fingerprint))


def load_directions(path: Path, *, fingerprint: str) -> Directions:
    """Read the directions, and see that they belong to the model whose training has this fingerprint.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another model.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: make it by `dvc repro evaluate`, or name another file of directions")
    directions, text = read_tensors(path)
    try:
        found = Header.model_validate_json(text).fingerprint
    except ValidationError as error:
        raise UserError(f"{path} holds no directions of facevae: {error}") from error
    if found != fingerprint:
        raise UserError(f"{path} belongs to another model (training {found}, not {fingerprint}): evaluate this one")
    return directions


def direction_of(directions: Directions, attribute: str) -> Tensor:
    """The direction of an attribute, or a `UserError` that lists those there are."""
    if attribute not in directions:
        known = ", ".join(sorted(directions)) or "none, since the set has no attributes"
        raise UserError(f"no attribute {attribute!r}; there are: {known}")
    return directions[attribute]
