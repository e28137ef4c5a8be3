"""Measure latent arithmetic: edit held-out images, and let a classifier judge what changed and what did not.

Each edited image is compared with its own reconstruction, not with the original, so the errors of the reconstruction do
not count as effects of the edit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.schema import EvaluateParams
from facevae.evaluate.directions import Directions, Method, edit
from facevae.evaluate.intervals import wilson_interval
from facevae.evaluate.judge import THRESHOLD, Classifier, judge
from facevae.evaluate.leakage import beyond, leakage, tied_changes
from facevae.evaluate.reconstruction import ssim
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE

RANDOM = "random"  # the control: a random direction for each image, with the length of the difference of means

Strengths = dict[str, float]  # one for each attribute

KEY = ("attribute", "method", "strength")
SCORES = ("success", "success_low", "success_high", "leakage", "selectivity", "ssim", "cycle_error", "num_images")
COLUMNS = (*KEY, *SCORES)
CHANGE_COLUMNS = (*KEY, "judged", "change")


@dataclass(frozen=True)
class EditStudy:
    """The effects of edits, as the classifier judges them.

    An image counts only if the classifier judges its reconstruction correctly: with the edited attribute if the image
    has it, without it otherwise. An attribute without such images has no rows.

    Attributes
    ----------
    table
        One row per attribute, method and strength. success: share of images whose edited attribute changed;
        success_low and success_high: its 95 % interval (`wilson_interval`); leakage: mean over the other attributes
        (`facevae.evaluate.leakage`); selectivity: success - leakage; ssim: between the edited image and its
        reconstruction; cycle_error: distance between the edited latent and the encoding of the edited image, over the
        length of the edited latent; num_images.
    changes
        One row per row of the table and attribute. judged: this attribute; change: of its probability, mean over
        images, with the sign reversed for images that lose the edited attribute, beyond the tied change.
    """

    table: pd.DataFrame
    changes: pd.DataFrame

    def best_method(self) -> Method:
        """The method whose best selectivity has the highest mean over attributes; never the control."""
        if self.table.empty:
            return "difference"
        best = self.table.groupby(["method", "attribute"])["selectivity"].max().groupby("method").mean()
        return cast("Method", best.drop(RANDOM, errors="ignore").idxmax())

    def best_strengths(self, method: Method) -> Strengths:
        """The strength with the highest selectivity of a method, for each attribute."""
        own = self.table[self.table["method"] == method]
        best = own.loc[own.groupby("attribute")["selectivity"].idxmax()]
        return dict(zip(best["attribute"], best["strength"], strict=True))

    def at(self, strengths: Strengths) -> pd.DataFrame:
        """The rows of all methods and the control at each attribute's strength."""
        return _rows_at(self.table, strengths)

    def leakage(self, strengths: Strengths, method: Method) -> pd.DataFrame:
        """The changes by one method at each attribute's strength; index: edited, columns: judged attributes."""
        changes = _rows_at(self.changes, strengths)
        own = changes[changes["method"] == method]
        return own.pivot_table(index="attribute", columns="judged", values="change", sort=False)


def _rows_at(table: pd.DataFrame, strengths: Strengths) -> pd.DataFrame:
    return table[table["strength"] == table["attribute"].map(strengths)]


def study_edits(
    model: VAE,
    classifier: Classifier,
    images: NDArray[np.uint8],
    attributes: pd.DataFrame,
    train_attributes: pd.DataFrame,
    directions: Mapping[Method, Directions],
    params: EvaluateParams,
    *,
    in_full: bool,
    seed: int,
) -> EditStudy:
    """Edit each of `params.attributes`: add it to images that lack it, remove it from images that have it.

    Parameters
    ----------
    images, attributes
        Held-out images, uint8 (N, height, width, channels), and their attributes. At most the first
        `params.num_edited_images` with an attribute, and as many without it, are edited.
    train_attributes
        Those of the training images, which tell the changes that belong to an edit from leakage.
    directions
        By method; "difference" is required.
    in_full
        False: leave out the control, `ssim` and `cycle_error`. They choose nothing and take most of the time.
    seed
        Determines the control, which is added to the methods.
    """
    rows: list[dict[str, object]] = []
    changes: list[dict[str, object]] = []
    control = np.random.default_rng([seed, 0])
    for attribute in params.attributes:
        has = attributes[attribute].to_numpy(dtype=bool)
        groups = [np.flatnonzero(group)[: params.num_edited_images] for group in (has, ~has)]
        chosen = np.sort(np.concatenate(groups))
        tied = tied_changes(train_attributes, attribute, classifier.attributes)
        shown = np.array(images[chosen]), has[chosen]
        subjects = _Subjects(model, classifier, *shown, attribute, tied, params.batch_size)
        if len(subjects.latent) == 0:
            continue
        judged: dict[str, Tensor] = {method: fitted[attribute] for method, fitted in directions.items()}
        if in_full:
            judged[RANDOM] = _random_directions(subjects.latent, judged["difference"].norm(), control)
        for method, direction in judged.items():
            for strength in params.strengths:
                key = {"attribute": attribute, "method": method, "strength": strength}
                row, change = subjects.judge_edit(direction, strength, in_full=in_full)
                rows.append(key | row)
                changes.extend(key | {"judged": name, "change": value} for name, value in change.items())
    return EditStudy(pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(changes, columns=CHANGE_COLUMNS))


def _random_directions(latent: Tensor, length: Tensor, generator: np.random.Generator) -> Tensor:
    """One per latent (N, latent_dim), since a single one for all could stand for something by chance."""
    noise = torch.from_numpy(generator.standard_normal(latent.shape)).to(latent.dtype)
    directions: Tensor = noise * (length / noise.norm(dim=1, keepdim=True))
    return directions


class _Subjects:
    """The images whose edits count: the classifier judges the attribute in their reconstruction correctly."""

    def __init__(
        self,
        model: VAE,
        classifier: Classifier,
        images: NDArray[np.uint8],
        has: NDArray[np.bool_],
        attribute: str,
        tied: Tensor,
        batch_size: int,
    ) -> None:
        self.model = model
        self.classifier = classifier
        self.column = classifier.attributes.index(attribute)
        self.others = torch.arange(len(classifier.attributes)) != self.column
        self.tied = tied * self.others  # the edited attribute must change in all images: none of that is free
        self.batch_size = batch_size
        latent = encode_all(model, images, batch_size).mean
        pictures = decode_all(model, latent, batch_size)
        probabilities = judge(classifier, pictures, batch_size).probabilities
        kept = (probabilities[:, self.column] > THRESHOLD) == torch.from_numpy(has)
        self.latent, self.probabilities = latent[kept], probabilities[kept]
        self.pictures = pictures[kept.numpy()]
        self.sign = torch.from_numpy(np.where(has, -1.0, 1.0)).float()[kept, None]  # (N, 1); 1 adds, -1 removes

    def judge_edit(
        self, direction: Tensor, strength: float, *, in_full: bool
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Scores of an edit, and the mean change of each attribute's probability.

        The direction is (latent_dim,), or (N, latent_dim) with one per image.
        """
        latent = edit(self.latent, self.sign * direction, strength)
        pictures = decode_all(self.model, latent, self.batch_size)
        probabilities = judge(self.classifier, pictures, self.batch_size).probabilities  # (N, num_attributes)
        changes = self.sign * ((probabilities > THRESHOLD).int() - (self.probabilities > THRESHOLD).int())
        success = (changes[:, self.column] != 0).double().numpy()
        leaked = float(leakage(changes, self.tied)[self.others].mean()) if self.others.any() else 0.0
        low, high = wilson_interval(int(success.sum()), len(success))
        row = {
            "success": success.mean(),
            "success_low": low,
            "success_high": high,
            "leakage": leaked,
            "selectivity": success.mean() - leaked,
            "num_images": len(success),
        }
        change = beyond((self.sign * (probabilities - self.probabilities)).mean(0), self.tied)
        scores = row | self._fidelity(latent, pictures) if in_full else row
        return scores, dict(zip(self.classifier.attributes, change.tolist(), strict=True))

    def _fidelity(self, latent: Tensor, pictures: NDArray[np.uint8]) -> dict[str, float]:
        """How near edited pictures are to those before, and their encodings to the edited latents."""
        again = encode_all(self.model, pictures, self.batch_size).mean
        before, after = (to_unit_range(shown, torch.device("cpu")) for shown in (self.pictures, pictures))
        return {
            "ssim": float(ssim(after, before).mean()),
            "cycle_error": float(((again - latent).norm(dim=1) / latent.norm(dim=1)).mean()),
        }
