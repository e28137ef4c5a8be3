"""Directions in latent space that stand for attributes: fit, apply, score, keep. The latent arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from facevae.data.prepared import varied_attributes
from facevae.errors import UserError
from facevae.storage.tensors import read_tensors, require_model, write_tensors

Directions = dict[str, Tensor]  # by attribute, each (latent_dim,)
Method = Literal["original", "difference", "balanced", "joint"]

SMALLEST_GROUP = 5  # images: the mean of fewer is mostly noise


class DirectionsHeader(BaseModel):
    """The training whose latent space the directions lie in, and whose edits were found to be the best."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    best: Method


@dataclass(frozen=True)
class FittedDirections:
    """The directions by each method, and the method whose edits were found to be the best."""

    by_method: dict[Method, Directions]
    best: Method


def fit_directions(means: Tensor, attributes: pd.DataFrame, original_lambda: float) -> dict[Method, Directions]:
    """The directions by each method, of every attribute that some images have and some have not.

    Parameters
    ----------
    means
        Posterior means, (N, latent_dim).
    attributes
        Values 0 and 1, one row an image.
    original_lambda
        The weight of the mean without the attribute in the original's formula.
    """
    varied = varied_attributes(attributes)
    has = torch.from_numpy(varied.to_numpy(dtype=bool, copy=True))
    names = list(varied.columns)
    fitted: dict[Method, Tensor] = {
        "original": _mean_with(means, has) - original_lambda * _mean_with(means, ~has),
        "difference": _mean_with(means, has) - _mean_with(means, ~has),
        "balanced": _balanced_difference(means, has),
        "joint": _joint_effects(means, has),
    }
    return {method: dict(zip(names, vectors, strict=True)) for method, vectors in fitted.items()}


def _mean_with(means: Tensor, has: Tensor) -> Tensor:
    """For each attribute the mean latent of the images that have it, (num_attributes, latent_dim).

    The mean with less the mean without is the attribute vector of Larsen et al. 2016, arXiv 1512.09300, section 3.2: a
    step of 1 leads from the average image without the attribute to the average one with it.
    """
    return (has.double().T @ means.double() / has.sum(0)[:, None]).float()


def _balanced_difference(means: Tensor, has: Tensor) -> Tensor:
    """The difference of means with the attribute that is most correlated with each held in balance.

    It is the mean of the differences among the images that have that other attribute and among those that have not,
    as if each combination were equally frequent (White 2016, arXiv 1609.04468, section 3.3). Where a combination is
    rarer than five images, the next attribute in the order of correlation is taken.
    """
    vectors = _mean_with(means, has) - _mean_with(means, ~has)
    correlation = has.double().T.corrcoef().abs().reshape(len(vectors), len(vectors))
    for attribute, vector in enumerate(vectors):
        own = has[:, attribute]
        for other in correlation[attribute].argsort(descending=True, stable=True).tolist():
            halves = [(own & same, ~own & same) for same in (has[:, other], ~has[:, other])]
            if all(group.sum() >= SMALLEST_GROUP for half in halves for group in half):
                vector.copy_(sum(means[with_it].mean(0) - means[without].mean(0) for with_it, without in halves) / 2)
                break
    return vectors


def _joint_effects(means: Tensor, has: Tensor) -> Tensor:
    """What each attribute adds to the latent while all others stay: least squares of the latents on all attributes.

    Attributes that determine each other share their effect: a ridge of one image's weight makes the answer unique.
    """
    centred = has.double() - has.double().mean(0)
    gram = centred.T @ centred + torch.eye(has.shape[1], dtype=torch.float64)
    effects: Tensor = torch.linalg.solve(gram, centred.T @ means.double())
    return effects.float()


def edit(latent: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Latents (..., latent_dim) moved along a direction (latent_dim,)."""
    return latent + strength * direction


def auc_table(means: Tensor, attributes: pd.DataFrame, fitted: Mapping[Method, Directions]) -> pd.DataFrame:
    """How well each direction ranks images that it was not fitted on.

    Returns
    -------
    pandas.DataFrame
        attribute, num_with, num_without, and for each method the area under the ROC curve of the projection on its
        direction (0.5 is chance); by falling mean over the methods. Attributes that these images share are left out.
    """
    from sklearn.metrics import roc_auc_score  # a second of imports, for which the command need not wait

    rows = []
    for name in fitted["difference"]:
        has = attributes[name].to_numpy(dtype=bool)
        if has.any() and not has.all():
            auc = [roc_auc_score(has, (means @ directions[name]).numpy()) for directions in fitted.values()]
            rows.append((name, has.sum(), (~has).sum(), *auc))
    table = pd.DataFrame(rows, columns=["attribute", "num_with", "num_without", *fitted])
    order = table[list(fitted)].mean(axis=1).sort_values(ascending=False, kind="stable").index
    return table.loc[order]


def save_directions(path: Path, fitted: FittedDirections, *, fingerprint: str) -> None:
    """Write the directions of the model whose training has this fingerprint."""
    tensors = {
        f"{method}/{name}": vector
        for method, directions in fitted.by_method.items()
        for name, vector in directions.items()
    }
    write_tensors(path, tensors, DirectionsHeader(fingerprint=fingerprint, best=fitted.best))


def load_directions(path: Path, *, fingerprint: str) -> FittedDirections:
    """Read the directions, and see that they belong to the model whose training has this fingerprint.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another model.
    """
    remedy = "make it by `dvc repro evaluate`, or name another file of directions"
    tensors, header = read_tensors(path, DirectionsHeader, remedy=remedy)
    require_model(path, header.fingerprint, fingerprint)
    by_method: dict[Method, Directions] = {method: {} for method in get_args(Method)}
    for key, vector in tensors.items():
        method, _, name = key.partition("/")
        if method not in by_method or vector.ndim != 1 or vector.dtype != torch.float32:
            raise UserError(f"{path} holds no directions of this version of facevae: make it by `dvc repro evaluate`")
        by_method[method][name] = vector
    return FittedDirections(by_method, header.best)


def direction_of(directions: Directions, attribute: str) -> Tensor:
    """The direction of an attribute, or a `UserError` that lists those there are."""
    if attribute not in directions:
        known = ", ".join(sorted(directions)) or "none, since the set has no attributes"
        raise UserError(f"no attribute {attribute!r}; there are: {known}")
    return directions[attribute]
