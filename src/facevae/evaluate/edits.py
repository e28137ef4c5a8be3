"""Latent arithmetic, measured: held-out images are edited and a classifier judges what changed and what did not.

Every edited image is compared with its own reconstruction, never with the original, so that what the model cannot draw
is not taken for an effect of the edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.evaluate.directions import Directions, Method, edit
from facevae.evaluate.judge import THRESHOLD, Classifier, judge
from facevae.evaluate.reconstruction import ssim
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE

RANDOM = "random"  # the control: for each image a direction that means nothing, as long as the difference of means

Strengths = dict[str, float]  # by attribute

INTERVAL = (2.5, 97.5)  # percentiles
KEY = ("attribute", "method", "strength")
COLUMNS = (
    *KEY,
    "success",
    "success_low",
    "success_high",
    "leakage",
    "selectivity",
    "ssim",
    "cycle_error",
    "num_images",
)
CHANGE_COLUMNS = (*KEY, "judged", "change")


@dataclass(frozen=True)
class EditStudy:
    """What edits did.

    Attributes
    ----------
    table
        One row for each attribute, method and strength: success (share of images judged to have changed as asked, of
        those whose reconstruction was judged not to be so yet), success_low and success_high (95 % bootstrap interval
        over images), leakage (share of all other attributes of these images that were judged to have changed),
        selectivity (success less leakage), ssim (of the edited image with its reconstruction), cycle_error (distance
        from the edited latent to that which the edited image is encoded to, relative to the edited latent's length) and
        num_images. There are no rows of an attribute that no reconstruction shows as its image has it.
    changes
        One row for each row of the table and each attribute: judged (which), change (of its probability, towards what
        was asked for of the edited attribute; mean over images).
    """

    table: pd.DataFrame
    changes: pd.DataFrame

    def best_method(self) -> Method:
        """The method, not being the control, with the highest mean over attributes of its best selectivity."""
        if self.table.empty:
            return "difference"
        best = self.table.groupby(["method", "attribute"])["selectivity"].max().groupby("method").mean()
        return cast("Method", best.drop(RANDOM).idxmax())

    def best_strengths(self, method: Method) -> Strengths:
        """For each attribute the strength at which a method has its highest selectivity."""
        own = self.table[self.table["method"] == method]
        best = own.loc[own.groupby("attribute")["selectivity"].idxmax()]
        return dict(zip(best["attribute"], best["strength"], strict=True))

    def at(self, strengths: Strengths) -> pd.DataFrame:
        """The rows of the table, of all methods and the control, at one strength for each attribute."""
        return _rows_at(self.table, strengths)

    def leakage(self, strengths: Strengths, method: Method) -> pd.DataFrame:
        """The changes by one method at one strength for each attribute; index: edited, columns: judged attributes."""
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
    directions: Mapping[Method, Directions],
    edited: Sequence[str],
    strengths: Sequence[float],
    *,
    num_images: int,
    num_bootstraps: int,
    batch_size: int,
    seed: int,
) -> EditStudy:
    """Give attributes to images that lack them and take them from images that have them, and judge what comes out.

    Parameters
    ----------
    images, attributes
        Held-out images (N, height, width, channels) and their attributes.
    directions
        By method, the difference of means among them. The control is added.
    edited
        The attributes to edit.
    strengths
        Multiples of the direction, positive: forwards where an image lacks the attribute, backwards where it has it.
    num_images
        How many images, at most, to take of each kind for each attribute: the first that there are.
    """
    rows: list[dict[str, object]] = []
    changes: list[dict[str, object]] = []
    control, bootstraps = (np.random.default_rng([seed, index]) for index in range(2))
    for attribute in edited:
        has = attributes[attribute].to_numpy(dtype=bool)
        chosen = np.sort(np.concatenate([np.flatnonzero(has)[:num_images], np.flatnonzero(~has)[:num_images]]))
        subjects = _Subjects(model, classifier, np.array(images[chosen]), has[chosen], attribute, batch_size)
        if len(subjects.latent) == 0:
            continue
        judged: dict[str, Tensor] = {method: fitted[attribute] for method, fitted in directions.items()}
        judged[RANDOM] = _random_directions(subjects.latent, judged["difference"].norm(), control)
        for method, direction in judged.items():
            for strength in strengths:
                key = {"attribute": attribute, "method": method, "strength": strength}
                row, change = subjects.judge_edit(direction, strength, bootstraps, num_bootstraps)
                rows.append(key | row)
                changes.extend(key | {"judged": name, "change": value} for name, value in change.items())
    return EditStudy(pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(changes, columns=CHANGE_COLUMNS))


def _random_directions(latent: Tensor, length: Tensor, generator: np.random.Generator) -> Tensor:
    """One for each latent (N, latent_dim): a single one for all might by chance mean something."""
    noise = torch.from_numpy(generator.standard_normal(latent.shape)).to(latent.dtype)
    directions: Tensor = noise * (length / noise.norm(dim=1, keepdim=True))
    return directions


class _Subjects:
    """The images whose reconstruction is judged as it should be before an edit: with the attribute, or without it."""

    def __init__(
        self,
        model: VAE,
        classifier: Classifier,
        images: NDArray[np.uint8],
        has: NDArray[np.bool_],
        attribute: str,
        batch_size: int,
    ) -> None:
        self.model = model
        self.classifier = classifier
        self.column = classifier.attributes.index(attribute)
        self.batch_size = batch_size
        latent = encode_all(model, images, batch_size).mean
        pictures = decode_all(model, latent, batch_size)
        probabilities = judge(classifier, pictures, batch_size).probabilities
        kept = (probabilities[:, self.column] > THRESHOLD) == torch.from_numpy(has)
        self.latent, self.probabilities = latent[kept], probabilities[kept]
        self.pictures = pictures[kept.numpy()]
        self.sign = torch.from_numpy(np.where(has, -1.0, 1.0)).float()[kept, None]  # towards what is asked for

    def judge_edit(
        self, direction: Tensor, strength: float, generator: np.random.Generator, num_bootstraps: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """A row of the table without its key, and the mean change of each attribute's probability.

        The direction is (latent_dim,), or (N, latent_dim) with one for each image.
        """
        latent = edit(self.latent, self.sign * direction, strength)
        pictures = decode_all(self.model, latent, self.batch_size)
        probabilities = judge(self.classifier, pictures, self.batch_size).probabilities
        has_flipped = (probabilities > THRESHOLD) != (self.probabilities > THRESHOLD)
        success = has_flipped[:, self.column].double().numpy()
        others = torch.arange(has_flipped.shape[1]) != self.column
        leakage = float(has_flipped[:, others].double().mean()) if others.any() else 0.0
        means = generator.choice(success, (num_bootstraps, len(success))).mean(1)
        low, high = np.percentile(means, INTERVAL)
        again = encode_all(self.model, pictures, self.batch_size).mean
        before, after = (to_unit_range(shown, torch.device("cpu")) for shown in (self.pictures, pictures))
        row = {
            "success": success.mean(),
            "success_low": low,
            "success_high": high,
            "leakage": leakage,
            "selectivity": success.mean() - leakage,
            "ssim": float(ssim(after, before).mean()),
            "cycle_error": float(((again - latent).norm(dim=1) / latent.norm(dim=1)).mean()),
            "num_images": len(success),
        }
        change = (self.sign * (probabilities - self.probabilities)).mean(0)
        return row, dict(zip(self.classifier.attributes, change.tolist(), strict=True))
