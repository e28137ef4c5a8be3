"""Everything that the evaluate stage measures, and what it fits to the training posteriors."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from facevae.concurrency import side_by_side
from facevae.config.checks import require_known
from facevae.config.schema import EvaluateParams
from facevae.data.prepared import PreparedSet, SplitName
from facevae.evaluate.directions import Directions, FittedDirections, Method, auc_table, fit_directions
from facevae.evaluate.edits import RANDOM, EditStudy, Strengths
from facevae.evaluate.judge import Classifier
from facevae.evaluate.latent import latent_metrics, latent_table
from facevae.evaluate.measurements import Measurements, encode_split
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.vae import VAE
from facevae.priors.fitting import FittedPriors
from facevae.storage.tables import require_finite


@dataclass(frozen=True)
class Evaluation:
    """Measurements on a split, and what was fitted for them.

    Attributes
    ----------
    metrics
        Numbers by name; docs/parameters.md explains them.
    tables
        Tables by file name.
    priors, directions
        Fitted to the training posteriors; the validation images choose the best of them.
    """

    metrics: dict[str, float]
    tables: dict[str, pd.DataFrame]
    priors: FittedPriors
    directions: FittedDirections


def evaluate(
    model: VAE,
    header: CheckpointHeader,
    classifier: Classifier,
    prepared: PreparedSet,
    params: EvaluateParams,
    *,
    horizontal_flip: bool,
    seed: int,
) -> Evaluation:
    """Measure a model on held-out images. `horizontal_flip` says whether its training mirrored the images.

    Raises
    ------
    UserError
        `evaluate.attributes` names an attribute that does not vary in the training images; a split has fewer than two
        images, or images of another shape than the model takes; or a result is not finite, since training exploded.
    """
    require_known("evaluate.attributes", params.attributes, classifier.attributes)
    names: tuple[SplitName, ...] = ("train", "validation", params.split)
    splits = {name: encode_split(model, header, prepared, name, params, seed) for name in dict.fromkeys(names)}
    train, validation, held_out = (splits[name] for name in names)
    measured = Measurements(
        model, header, classifier, train, validation, held_out, params, horizontal_flip=horizontal_flip, seed=seed
    )
    skill = measured.skill()
    directions = fit_directions(train.posteriors.mean, train.attributes, params.original_lambda)

    half = max(1, torch.get_num_threads() // 2)
    priors, own = side_by_side(
        measured.fit_priors, partial(_measure_without_priors, measured, directions), num_threads=half
    )
    # The search for neighbours makes both tasks about equally long
    ((bounds, bound_tables), neighbours), (samples, sample_tables) = side_by_side(
        lambda: (measured.likelihood(priors, own.log_sigmas), measured.neighbour_distance_ratio(priors)),
        partial(measured.samples, priors),
        num_threads=half,
    )
    edits, best_method = own.edits, own.tried_edits.best_method()
    strengths = own.tried_edits.best_strengths(best_method)
    metrics = {
        **own.reconstructions,
        **bounds,
        **latent_metrics(held_out.posteriors),
        **samples,
        "neighbour_distance_ratio": neighbours,
        "two_sample_accuracy": own.two_sample_accuracy,
        **({} if skill.empty else {"classifier_auc": float(skill["classifier_auc"].mean())}),
        **_edit_metrics(edits, strengths, best_method),
    }
    require_finite(metrics, "evaluate")
    auc = auc_table(held_out.posteriors.mean, held_out.attributes, directions)
    tables = {
        "latent.csv": latent_table(held_out.posteriors),
        **bound_tables,
        **sample_tables,
        "attribute_auc.csv": auc.join(skill, on="attribute"),
        "edits.csv": edits.table,
        "leakage.csv": edits.leakage(strengths, best_method).reset_index(),
    }
    return Evaluation(metrics, tables, priors, FittedDirections(directions, best_method))


class _WithoutPriors(NamedTuple):
    """What is measured while the priors are fitted."""

    tried_edits: EditStudy  # of validation images, which choose among the ways to edit
    edits: EditStudy  # of held-out images
    two_sample_accuracy: float
    reconstructions: dict[str, float]
    log_sigmas: dict[str, Tensor]


def _measure_without_priors(measured: Measurements, directions: dict[Method, Directions]) -> _WithoutPriors:
    edits = measured.edits(measured.held_out, directions)
    return _WithoutPriors(
        edits if measured.held_out is measured.validation else measured.edits(measured.validation, directions),
        edits,
        measured.two_sample_accuracy(),
        measured.reconstructions(),
        measured.log_sigmas(),
    )


def _edit_metrics(edits: EditStudy, strengths: Strengths, method: Method) -> dict[str, float]:
    """Means over attributes of a method and of the control, at each attribute's strength; empty without edits."""
    rows = edits.at(strengths)
    if rows.empty:
        return {}
    means = rows.groupby("method")[["success", "leakage", "selectivity", "ssim"]].mean().to_dict("index")
    own = {f"edit_{name}": value for name, value in means[method].items()}
    return {**own, "edit_success_random": means[RANDOM]["success"]}
