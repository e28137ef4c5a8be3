"""What evaluate measures of a model, and of the priors fitted to its posteriors."""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.schema import EvaluateParams
from facevae.data.prepared import PreparedSet, SplitName
from facevae.errors import UserError
from facevae.evaluate.conditional import conditional_metrics, conditional_table
from facevae.evaluate.directions import Directions, Method
from facevae.evaluate.edits import EditStudy, study_edits
from facevae.evaluate.judge import Classifier, Judgement, judge, skill_table
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

MAX_CALIBRATION_IMAGES = 1000  # training images that determine the calibrated sigma
LOWEST_SKILL = 0.5  # recall and specificity that the classifier needs to judge an attribute's edits

logger = logging.getLogger(__name__)

Measured = tuple[dict[str, float], dict[str, pd.DataFrame]]  # metrics by name, tables by file name


@dataclass(frozen=True)
class EncodedSplit:
    """Images of a split, uint8 (N, height, width, channels), with their attributes and posteriors.

    `originals` have all intensities, like decoded pictures, and are what the classifier takes. `images` are what the
    model takes: the same, or black and white.
    """

    originals: NDArray[np.uint8]
    images: NDArray[np.uint8]
    attributes: pd.DataFrame
    posteriors: Posterior


def encode_split(
    model: VAE, header: CheckpointHeader, prepared: PreparedSet, name: SplitName, params: EvaluateParams, seed: int
) -> EncodedSplit:
    """Encode the images of a split.

    Raises
    ------
    UserError
        There are fewer than two images, they have another shape than the model takes, or the posteriors are not finite.
    """
    originals = prepared.images(name)
    images = binarize(originals, header.binarization, seed)
    if len(images) < 2:
        raise UserError(f"the {name} split has {len(images)} image(s), but evaluate needs two. Use more images")
    require_shape(images, header)
    posteriors = encode_all(model, images, params.batch_size)
    require_finite({"the mean of the posteriors": float(posteriors.mean.sum())}, f"the {name} split")
    return EncodedSplit(originals, images, prepared.attributes(name), posteriors)


@dataclass(frozen=True)
class Measurements:
    """Measurements of a model on held-out images.

    `horizontal_flip` says whether its training mirrored the images; `seed` determines all draws. Priors are fitted to
    training posteriors; validation images choose among them, and among the ways to edit.
    """

    model: VAE
    header: CheckpointHeader
    classifier: Classifier
    train: EncodedSplit
    validation: EncodedSplit
    held_out: EncodedSplit
    params: EvaluateParams
    horizontal_flip: bool
    seed: int

    @cached_property
    def judgement(self) -> Judgement:
        """What the classifier says of the held-out images."""
        return judge(self.classifier, self.held_out.originals, self.params.batch_size)

    def fit_priors(self) -> FittedPriors:
        """The priors, compared by pictures."""
        return fit_compared_priors(
            self.model,
            self.classifier,
            self.train.posteriors,
            self.validation.posteriors,
            self.train.attributes,
            self.validation.originals,
            self.params,
            seed=self.seed,
        )

    def edits(self, split: EncodedSplit, directions: dict[Method, Directions]) -> EditStudy:
        """Edits of the images of a split, in full if it is the held-out one."""
        return study_edits(
            self.model,
            self.classifier,
            split.images,
            split.attributes,
            self.train.attributes,
            directions,
            self.params,
            in_full=split is self.held_out,
            seed=self.seed,
        )

    def two_sample_accuracy(self) -> float:
        """How well a classifier, trained on validation images, tells held-out images from their reconstructions."""
        encoded = [(split.originals, split.posteriors.mean) for split in (self.validation, self.held_out)]
        pairs = reconstructed_pairs(self.model, *encoded, batch_size=self.params.batch_size)
        return two_sample_accuracy(*pairs, self.model.log_sigma.device, seed=self.seed)

    def reconstructions(self) -> dict[str, float]:
        """How near the reconstructions of the held-out images are to them."""
        images, posteriors = self.held_out.images, self.held_out.posteriors
        return reconstruction_metrics(self.model, images, posteriors, batch_size=self.params.batch_size, seed=self.seed)

    def log_sigmas(self) -> dict[str, Tensor]:
        """The trained log sigma, and for a Gaussian the one calibrated on training images."""
        log_sigmas = {"trained": self.model.log_sigma.detach().cpu()}
        if self.header.likelihood != "bernoulli":
            some, batch_size = slice(MAX_CALIBRATION_IMAGES), self.params.batch_size
            images, posteriors = self.train.images[some], self.train.posteriors[some]
            error = mean_squared_error(self.model, images, posteriors, batch_size=batch_size, seed=self.seed)
            log_sigmas["calibrated"] = calibrated_log_sigma(error, images[0].size)
        return log_sigmas

    def likelihood(self, priors: FittedPriors, log_sigmas: dict[str, Tensor]) -> Measured:
        """Bounds of the log-likelihood of the held-out images under each log sigma and prior."""
        table = likelihood_table(
            self.model,
            self.held_out.images,
            self.held_out.posteriors,
            self.header.likelihood,
            log_sigmas,
            priors.priors,
            num_importance_samples=self.params.num_importance_samples,
            batch_size=self.params.batch_size,
            seed=self.seed,
        )
        return likelihood_metrics(table, priors.best), {"likelihood.csv": table}

    def samples(self, priors: FittedPriors) -> Measured:
        """How near samples are to held-out images, and whether they have the attributes that are asked for."""
        compared = self._samplers(priors).compared(self.train.originals)
        labelled = self.held_out.originals, self.held_out.attributes
        conditional = conditional_table(
            self.model, self.classifier, priors.flow, *labelled, self.params, seed=self.seed
        )
        best = {str(name): value for name, value in compared.to_dict("index")[priors.best].items()}
        tables = {"samplers.csv": compared.reset_index(), "conditional.csv": conditional}
        return best | conditional_metrics(conditional), tables

    def neighbour_distance_ratio(self, priors: FittedPriors) -> float:
        """How far samples are from training images, relative to reconstructions."""
        return self._samplers(priors).neighbour_distance_ratio(self.train.originals)

    def skill(self) -> pd.DataFrame:
        """How well the classifier judges the held-out images; index: attribute.

        A warning names the edited attributes that it does not recognise well enough to judge their edits.
        """
        table = skill_table(self.judgement, self.classifier.attributes, self.held_out.attributes)
        for name in table.index.intersection(list(self.params.attributes)):
            recall, specificity = table.loc[name, ["classifier_recall", "classifier_specificity"]]
            if min(recall, specificity) < LOWEST_SKILL:
                logger.warning(
                    "the classifier cannot judge %s: it recognises %.0f %% of the %s images with it and %.0f %% of "
                    "those without it. Raise classifier.epochs, or use more images",
                    name,
                    100 * recall,
                    self.params.split,
                    100 * specificity,
                )
        return table

    def _samplers(self, priors: FittedPriors) -> Samplers:
        return Samplers(
            self.model,
            self.classifier,
            priors,
            self.held_out.originals,
            self.judgement.features,
            self.held_out.posteriors,
            self.params,
            horizontal_flip=self.horizontal_flip,
            seed=self.seed,
        )
