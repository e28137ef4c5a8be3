"""Latent arithmetic: fit, apply, score and store the directions in latent space that stand for attributes."""

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

SMALLEST_GROUP = 5  # images; the mean of fewer is mostly noise


class DirectionsHeader(BaseModel):
    """The fingerprint of the model's training, and the method with the best edits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    best: Method


@dataclass(frozen=True)
class FittedDirections:
    """The directions that each method found, and the method with the best edits."""

    by_method: dict[Method, Directions]
    best: Method


def fit_directions(means: Tensor, attributes: pd.DataFrame, original_lambda: float) -> dict[Method, Directions]:
    """Fit directions by each method, for every attribute that varies between the images.

    Parameters
    ----------
    means
        Posterior means, (N, latent_dim).
    attributes
        Values 0 and 1, one row an image.
    original_lambda
        Weight of the mean without the attribute in the original's formula.
    """
    varied = varied_attributes(attributes)
    has = torch.from_numpy(varied.to_numpy(dtype=bool, copy=True))  # (N, num_attributes)
    names = list(varied.columns)
    fitted: dict[Method, Tensor] = {  # each (num_attributes, latent_dim)
        "original": _mean_with(means, has) - original_lambda * _mean_with(means, ~has),
        "difference": _mean_with(means, has) - _mean_with(means, ~has),
        "balanced": _balanced_difference(means, has),
        "joint": _joint_effects(means, has),
    }
    return {method: dict(zip(names, vectors, strict=True)) for method, vectors in fitted.items()}


def _mean_with(means: Tensor, has: Tensor) -> Tensor:
    """Mean latent of the images that have each attribute, (num_attributes, latent_dim).

    The mean with the attribute minus the mean without it is the attribute vector of Larsen et al. 2016, arXiv
    1512.09300, section 3.2. A step of 1 leads from the average image without the attribute to the average with it.
    """
    return (has.double().T @ means.double() / has.sum(0)[:, None]).float()


def _balanced_difference(means: Tensor, has: Tensor) -> Tensor:
    """The difference of means, balanced over the other attribute that correlates most with each.

    It is the mean of two differences: among the images with the other attribute, and among those without it, as if
    each combination were equally frequent (White 2016, arXiv 1609.04468, section 3.3). If a combination has fewer than
    five images, the next attribute in the order of correlation is tried; without any, the plain difference stays.
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
    """Least squares of the latents on all attributes: what each adds to the latent while the others stay the same.

    A ridge with the weight of one image makes the solution unique: attributes that determine each other share the
    effect.
    """
    centred = has.double() - has.double().mean(0)
    gram = centred.T @ centred + torch.eye(has.shape[1], dtype=torch.float64)
    effects: Tensor = torch.linalg.solve(gram, centred.T @ means.double())
    return effects.float()


def edit(latent: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Move latents (..., latent_dim) along a direction, (latent_dim,) or one for each."""
    return latent + strength * direction


def auc_table(means: Tensor, attributes: pd.DataFrame, fitted: Mapping[Method, Directions]) -> pd.DataFrame:
    """How well each direction ranks images that it was not fitted to.

    Returns
    -------
    pandas.DataFrame
        attribute, num_with, num_without, and for each method the area under the ROC curve of the projection on its
        direction (0.5 is chance). The attribute with the highest mean over the methods comes first. Attributes that do
        not vary in these images are left out.
    """
    from sklearn.metrics import roc_auc_score  # a second of imports, which the command line does without

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
    """Write the directions; `fingerprint` identifies the training of their model."""
    tensors = {
        f"{method}/{name}": vector
        for method, directions in fitted.by_method.items()
        for name, vector in directions.items()
    }
    write_tensors(path, tensors, DirectionsHeader(fingerprint=fingerprint, best=fitted.best))


def load_directions(path: Path, *, fingerprint: str) -> FittedDirections:
    """Read the directions of the model whose training has this fingerprint.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another model.
    """
    remedy = "run `dvc repro evaluate`, or name another file of directions"
    tensors, header = read_tensors(path, DirectionsHeader, remedy=remedy)
    require_model(path, header.fingerprint, fingerprint)
    by_method: dict[Method, Directions] = {method: {} for method in get_args(Method)}
    for key, vector in tensors.items():
        method, _, name = key.partition("/")
        if method not in by_method or vector.ndim != 1 or vector.dtype != torch.float32:
            raise UserError(f"{path} is not of this version of facevae. Run `dvc repro evaluate`")
        by_method[method][name] = vector
    return FittedDirections(by_method, header.best)


def direction_of(directions: Directions, attribute: str) -> Tensor:
    """The direction of an attribute, or a `UserError` that lists the known attributes."""
    if attribute not in directions:
        known = ", ".join(sorted(directions)) or "none, since the set has no attributes"
        raise UserError(f"unknown attribute {attribute!r}. Known attributes: {known}")
    return directions[attribute]
