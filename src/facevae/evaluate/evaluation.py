"""All that the evaluate stage measures, and what it fits to the training posteriors on the way."""

import logging
from dataclasses import dataclass

import pandas as pd

from facevae.config.checks import require_known
from facevae.config.schema import EvaluateParams
from facevae.data.prepared import PreparedSet, SplitName
from facevae.errors import UserError
from facevae.evaluate.directions import Directions, FittedDirections, Method, auc_table, fit_directions
from facevae.evaluate.edits import RANDOM, EditStudy, Strengths, study_edits
from facevae.evaluate.judge import Classifier, Judgement, judge, skill_table
from facevae.evaluate.latent import active_units, aggregate_kl_nats, latent_table
from facevae.evaluate.likelihood import calibrated_log_sigma, likelihood_table
from facevae.evaluate.reconstruction import mean_squared_error, reconstruction_metrics
from facevae.evaluate.samples import Samplers
from facevae.model.binarization import binarize
from facevae.model.checkpoint import CheckpointHeader, require_shape
from facevae.model.inference import encode_all
from facevae.model.vae import VAE, Posterior
from facevae.priors.fitting import FittedPriors, fit_priors
from facevae.storage.tables import require_finite

MAX_CALIBRATION_IMAGES = 5000  # training images that the calibrated sigma is taken from
LOWEST_SKILL = 0.5  # recall or specificity of the classifier, below which it cannot judge an attribute's edits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split, and what was fitted for it.

    Attributes
    ----------
    metrics
        Numbers by name, as docs/parameters.md explains them.
    tables
        By the name of their file.
    priors, directions
        Fitted to the training posteriors, and the best of them chosen on the validation images.
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
    seed: int,
) -> Evaluation:
    """Measure a model on held-out images.

    Raises
    ------
    UserError
        `evaluate.attributes` names one that the training images do not vary in, a split has fewer than two images or
        images of another shape than the model takes, or the model is so unstable that something is not finite.
    """
    require_known("evaluate.attributes", params.attributes, classifier.attributes)
    names: tuple[SplitName, ...] = ("train", "validation", params.split)
    splits = {name: _Split(model, header, prepared, name, params.batch_size, seed) for name in dict.fromkeys(names)}
    train, validation, held_out = (splits[name] for name in names)
    priors = fit_priors(train.posteriors, validation.posteriors, seed=seed)
    directions = fit_directions(train.posteriors.mean, train.attributes, params.original_lambda)
    measure = _Measure(model, header, classifier, params, seed)
    likelihood = measure.likelihood(train, held_out, priors)
    judgement = judge(classifier, held_out.originals, params.batch_size)
    skill = measure.skill(judgement, held_out.attributes)
    shown = held_out.originals, judgement.features, held_out.posteriors
    samplers = Samplers(model, classifier, priors, *shown, params, seed=seed)
    samples = samplers.compared(train.originals)
    chosen = measure.edits(validation, directions)
    edits = chosen if params.split == "validation" else measure.edits(held_out, directions)
    best_method = chosen.best_method()
    strengths = chosen.best_strengths(best_method)
    metrics = {
        **reconstruction_metrics(model, held_out.images, held_out.posteriors, batch_size=params.batch_size, seed=seed),
        **_likelihood_metrics(likelihood, priors.best),
        **_latent_metrics(held_out.posteriors),
        **{str(name): value for name, value in samples.to_dict("index")[priors.best].items()},
        "neighbour_distance_ratio": samplers.neighbour_distance_ratio(train.originals),
        **({} if skill.empty else {"classifier_auc": float(skill["classifier_auc"].mean())}),
        **_edit_metrics(edits, strengths, best_method),
    }
    require_finite(metrics, "evaluate")
    tables = {
        "latent.csv": latent_table(held_out.posteriors),
        "likelihood.csv": likelihood,
        "samplers.csv": samples.reset_index(),
        "attribute_auc.csv": auc_table(held_out.posteriors.mean, held_out.attributes, directions).join(
            skill, on="attribute"
        ),
        "edits.csv": edits.table,
        "leakage.csv": edits.leakage(strengths, best_method).reset_index(),
    }
    return Evaluation(metrics, tables, priors, FittedDirections(directions, best_method))


class _Split:
    """Images (N, height, width, channels) of a split, their attributes and posteriors.

    `originals` are in all intensities, as the classifier and every decoded picture has them; `images` are what the
    model takes, and black and white where it is trained on such.
    """

    def __init__(
        self, model: VAE, header: CheckpointHeader, prepared: PreparedSet, name: SplitName, batch_size: int, seed: int
    ) -> None:
        self.originals = prepared.images(name)
        self.images = binarize(self.originals, header.binarization, seed)
        if len(self.images) < 2:
            raise UserError(f"the {name} split has {len(self.images)} image(s), and evaluate needs two or more")
        require_shape(self.images, header)
        self.attributes = prepared.attributes(name)
        self.posteriors = encode_all(model, self.images, batch_size)
        require_finite({"the mean of the posteriors": float(self.posteriors.mean.sum())}, f"the {name} split")


class _Measure:
    """The measures that go through the decoder, with what they share."""

    def __init__(
        self, model: VAE, header: CheckpointHeader, classifier: Classifier, params: EvaluateParams, seed: int
    ) -> None:
        self.model = model
        self.header = header
        self.classifier = classifier
        self.params = params
        self.seed = seed

    def likelihood(self, train: _Split, held_out: _Split, priors: FittedPriors) -> pd.DataFrame:
        """`likelihood_table` at the sigma trained with and at the one calibrated on training images."""
        log_sigmas = {"trained": self.model.log_sigma.detach().cpu()}
        if self.header.likelihood != "bernoulli":
            some = slice(MAX_CALIBRATION_IMAGES)
            error = mean_squared_error(
                self.model,
                train.images[some],
                train.posteriors[some],
                batch_size=self.params.batch_size,
                seed=self.seed,
            )
            log_sigmas["calibrated"] = calibrated_log_sigma(error, train.images[0].size)
        return likelihood_table(
            self.model,
            held_out.images,
            held_out.posteriors,
            self.header.likelihood,
            log_sigmas,
            priors.priors,
            num_importance_samples=self.params.num_importance_samples,
            batch_size=self.params.batch_size,
            seed=self.seed,
        )

    def skill(self, judgement: Judgement, attributes: pd.DataFrame) -> pd.DataFrame:
        """`skill_table` of the classifier, which a warning tells of where it cannot judge the edits."""
        table = skill_table(judgement, self.classifier.attributes, attributes)
        for name in table.index.intersection(list(self.params.attributes)):
            recall, specificity = table.loc[name, ["classifier_recall", "classifier_specificity"]]
            if min(recall, specificity) < LOWEST_SKILL:
                logger.warning(
                    "the classifier is no judge of %s: of the %s images it finds %.0f %% of those with it, and %.0f %% "
                    "of those without it. Raise classifier.epochs, or take more images",
                    name,
                    self.params.split,
                    100 * recall,
                    100 * specificity,
                )
        return table

    def edits(self, split: _Split, directions: dict[Method, Directions]) -> EditStudy:
        """`study_edits` as the params have it."""
        return study_edits(
            self.model,
            self.classifier,
            split.images,
            split.attributes,
            directions,
            self.params.attributes,
            self.params.strengths,
            num_images=self.params.num_edited_images,
            num_bootstraps=self.params.num_bootstraps,
            batch_size=self.params.batch_size,
            seed=self.seed,
        )


def _likelihood_metrics(table: pd.DataFrame, best_prior: str) -> dict[str, float]:
    """The bounds of the model as it was trained, and the bits that a calibrated sigma and the best prior bring."""
    rows = {(row.pop("sigma"), row.pop("prior")): row for row in table.to_dict("records")}
    sigma = "calibrated" if ("calibrated", "normal") in rows else "trained"
    bits = "importance_weighted_bits_per_dimension"
    return {
        **{str(name): value for name, value in rows["trained", "normal"].items()},
        "calibrated_bits_per_dimension": rows[sigma, "normal"][bits],
        "fitted_prior_bits_per_dimension": rows[sigma, best_prior][bits],
    }


def _latent_metrics(posteriors: Posterior) -> dict[str, float]:
    num_active = active_units(posteriors.mean)
    if num_active == 0:
        logger.warning(
            "the posterior has collapsed: no latent dimension is active, and every reconstruction is the same picture. "
            "Lower train.beta, or raise train.kl_warmup_epochs"
        )
    return {
        "active_units": num_active,
        "aggregate_kl_nats": aggregate_kl_nats(posteriors),
        "posterior_collapsed": int(num_active == 0),
    }


def _edit_metrics(edits: EditStudy, strengths: Strengths, method: Method) -> dict[str, float]:
    """Means over attributes, of a method and of the control, at strengths by attribute, where there are edits."""
    rows = edits.at(strengths)
    if rows.empty:
        return {}
    means = rows.groupby("method")[["success", "leakage", "selectivity", "ssim"]].mean().to_dict("index")
    own = {f"edit_{name}": value for name, value in means[method].items()}
    return {**own, "edit_success_random": means[RANDOM]["success"]}
