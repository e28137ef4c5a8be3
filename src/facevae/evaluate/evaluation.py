"""Everything that the evaluate stage measures, and what it fits to the training posteriors."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.checks import require_known
from facevae.config.schema import EvaluateParams
from facevae.data.prepared import PreparedSet, SplitName
from facevae.errors import UserError
from facevae.evaluate.conditional import conditional_metrics, conditional_table
from facevae.evaluate.directions import FittedDirections, Method, auc_table, fit_directions
from facevae.evaluate.edits import RANDOM, EditStudy, Strengths, study_edits
from facevae.evaluate.judge import Classifier, judge, skill_table
from facevae.evaluate.latent import latent_metrics, latent_table
from facevae.evaluate.likelihood import calibrated_log_sigma, likelihood_metrics, likelihood_table
from facevae.evaluate.reconstruction import mean_squared_error, reconstruction_metrics
from facevae.evaluate.samples import Samplers, fit_compared_priors
from facevae.evaluate.two_sample import reconstructed_pairs, two_sample_accuracy
from facevae.model.binarization import binarize
from facevae.model.checkpoint import CheckpointHeader, require_shape
from facevae.model.inference import encode_all
from facevae.model.vae import VAE, Posterior
from facevae.priors.fitting import FittedPriors
from facevae.storage.tables import require_finite

MAX_CALIBRATION_IMAGES = 5000  # training images that determine the calibrated sigma
LOWEST_SKILL = 0.5  # recall and specificity that the classifier needs to judge an attribute's edits

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Split:
    """Images of a split, uint8 (N, height, width, channels), with their attributes and posteriors.

    `originals` have all intensities, like decoded pictures, and are what the classifier takes. `images` are what the
    model takes: the same, or black and white.
    """

    originals: NDArray[np.uint8]
    images: NDArray[np.uint8]
    attributes: pd.DataFrame
    posteriors: Posterior


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
    splits = {name: _encode_split(model, header, prepared, name, params, seed) for name in dict.fromkeys(names)}
    train, validation, held_out = (splits[name] for name in names)
    posteriors, comparison = (train.posteriors, validation.posteriors), (train.attributes, validation.originals)
    priors = fit_compared_priors(model, classifier, *posteriors, *comparison, params, seed=seed)
    directions = fit_directions(train.posteriors.mean, train.attributes, params.original_lambda)
    likelihood = likelihood_table(
        model,
        held_out.images,
        held_out.posteriors,
        header.likelihood,
        _log_sigmas(model, header, train, params, seed),
        priors.priors,
        num_importance_samples=params.num_importance_samples,
        batch_size=params.batch_size,
        seed=seed,
    )
    judgement = judge(classifier, held_out.originals, params.batch_size)
    skill = skill_table(judgement, classifier.attributes, held_out.attributes)
    _warn_of_poor_judge(skill, params)
    shown = held_out.originals, judgement.features, held_out.posteriors
    samplers = Samplers(model, classifier, priors, *shown, params, horizontal_flip=horizontal_flip, seed=seed)
    samples = samplers.compared(train.originals)
    labelled = held_out.originals, held_out.attributes
    conditional = conditional_table(model, classifier, priors.flow, *labelled, params, seed=seed)
    studies = {
        name: study_edits(
            model,
            classifier,
            split.images,
            split.attributes,
            train.attributes,
            directions,
            params,
            in_full=name == params.split,
            seed=seed,
        )
        for name, split in splits.items()
        if name != "train"
    }
    best_method = studies["validation"].best_method()
    strengths = studies["validation"].best_strengths(best_method)
    edits = studies[params.split]
    encoded = [(split.originals, split.posteriors.mean) for split in (validation, held_out)]
    reconstructed = reconstructed_pairs(model, *encoded, batch_size=params.batch_size)
    metrics = {
        **reconstruction_metrics(model, held_out.images, held_out.posteriors, batch_size=params.batch_size, seed=seed),
        **likelihood_metrics(likelihood, priors.best),
        **latent_metrics(held_out.posteriors),
        **{str(name): value for name, value in samples.to_dict("index")[priors.best].items()},
        "neighbour_distance_ratio": samplers.neighbour_distance_ratio(train.originals),
        "two_sample_accuracy": two_sample_accuracy(*reconstructed, model.log_sigma.device, seed=seed),
        **conditional_metrics(conditional),
        **({} if skill.empty else {"classifier_auc": float(skill["classifier_auc"].mean())}),
        **_edit_metrics(edits, strengths, best_method),
    }
    require_finite(metrics, "evaluate")
    tables = {
        "latent.csv": latent_table(held_out.posteriors),
        "likelihood.csv": likelihood,
        "samplers.csv": samples.reset_index(),
        "conditional.csv": conditional,
        "attribute_auc.csv": auc_table(held_out.posteriors.mean, held_out.attributes, directions).join(
            skill, on="attribute"
        ),
        "edits.csv": edits.table,
        "leakage.csv": edits.leakage(strengths, best_method).reset_index(),
    }
    return Evaluation(metrics, tables, priors, FittedDirections(directions, best_method))


def _encode_split(
    model: VAE, header: CheckpointHeader, prepared: PreparedSet, name: SplitName, params: EvaluateParams, seed: int
) -> _Split:
    originals = prepared.images(name)
    images = binarize(originals, header.binarization, seed)
    if len(images) < 2:
        raise UserError(f"the {name} split has {len(images)} image(s), but evaluate needs two. Use more images")
    require_shape(images, header)
    posteriors = encode_all(model, images, params.batch_size)
    require_finite({"the mean of the posteriors": float(posteriors.mean.sum())}, f"the {name} split")
    return _Split(originals, images, prepared.attributes(name), posteriors)


def _log_sigmas(
    model: VAE, header: CheckpointHeader, train: _Split, params: EvaluateParams, seed: int
) -> dict[str, Tensor]:
    """The trained log sigma, and for a Gaussian the one calibrated on training images."""
    log_sigmas = {"trained": model.log_sigma.detach().cpu()}
    if header.likelihood != "bernoulli":
        images, posteriors = train.images[:MAX_CALIBRATION_IMAGES], train.posteriors[:MAX_CALIBRATION_IMAGES]
        error = mean_squared_error(model, images, posteriors, batch_size=params.batch_size, seed=seed)
        log_sigmas["calibrated"] = calibrated_log_sigma(error, images[0].size)
    return log_sigmas


def _warn_of_poor_judge(skill: pd.DataFrame, params: EvaluateParams) -> None:
    """Name the edited attributes that the classifier does not recognise well enough to judge their edits."""
    for name in skill.index.intersection(list(params.attributes)):
        recall, specificity = skill.loc[name, ["classifier_recall", "classifier_specificity"]]
        if min(recall, specificity) < LOWEST_SKILL:
            logger.warning(
                "the classifier cannot judge %s: it recognises %.0f %% of the %s images with it and %.0f %% of those "
                "without it. Raise classifier.epochs, or use more images",
                name,
                100 * recall,
                params.split,
                100 * specificity,
            )


def _edit_metrics(edits: EditStudy, strengths: Strengths, method: Method) -> dict[str, float]:
    """Means over attributes of a method and of the control, at each attribute's strength; empty without edits."""
    rows = edits.at(strengths)
    if rows.empty:
        return {}
    means = rows.groupby("method")[["success", "leakage", "selectivity", "ssim"]].mean().to_dict("index")
    own = {f"edit_{name}": value for name, value in means[method].items()}
    return {**own, "edit_success_random": means[RANDOM]["success"]}
