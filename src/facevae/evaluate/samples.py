"""Measure decoded samples of each prior: distance to held-out images, distance to training images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.concurrency import seeded
from facevae.config.schema import EvaluateParams
from facevae.data.prepared import varied_attributes
from facevae.evaluate.distances import frechet_distance, kernel_distance, nearest_images, sharpness_ratio
from facevae.evaluate.inception import Inception
from facevae.evaluate.judge import Classifier, judge
from facevae.evaluate.sliced_wasserstein import project_patches
from facevae.model.inference import decode_all
from facevae.model.pixels import batches_of, to_unit_range
from facevae.model.vae import VAE, Posterior
from facevae.priors.fitting import FittedPriors, fit_priors

MAX_NEIGHBOURS = 100  # samples whose nearest training image is looked for


def fit_compared_priors(
    model: VAE,
    classifier: Classifier,
    train: Posterior,
    validation: Posterior,
    train_attributes: pd.DataFrame,
    validation_images: NDArray[np.uint8],
    params: EvaluateParams,
    *,
    seed: int,
) -> FittedPriors:
    """Fit the priors to training posteriors, and compare them by pictures with validation images.

    The distance is that of Fréchet in the classifier's features; `train_attributes` have values 0 and 1.
    """
    num_samples = min(params.num_samples, len(validation_images))
    real_features = judge(classifier, validation_images[:num_samples], params.batch_size).features

    def distance(latent: Tensor) -> float:
        pictures = decode_all(model, latent, params.batch_size)
        return frechet_distance(judge(classifier, pictures, params.batch_size).features, real_features)

    varied = varied_attributes(train_attributes)
    labels = torch.from_numpy(varied.to_numpy(dtype=np.float32) * 2 - 1)
    names = tuple(varied.columns)
    return fit_priors(
        train,
        validation,
        labels,
        names,
        distance,
        num_samples=num_samples,
        temperature=params.temperature,
        seed=seed,
    )


@dataclass(frozen=True)
class Samplers:
    """The priors of one model as samplers of pictures, beside held-out images.

    Attributes
    ----------
    model, classifier, priors
        What decodes, what gives the features that the distances are taken in, and what is drawn from.
    images, features, posteriors
        Held-out images (N, height, width, channels), the classifier's features of them (N, num_features), and their
        posteriors.
    params
        The number of samples, the size of the batches, the weights of Inception.
    horizontal_flip
        Whether the training mirrored its images.
    seed
        Determines the draws and the projections.
    """

    model: VAE
    classifier: Classifier
    priors: FittedPriors
    images: NDArray[np.uint8]
    features: Tensor
    posteriors: Posterior
    params: EvaluateParams
    horizontal_flip: bool
    seed: int

    def compared(self, train_images: NDArray[np.uint8]) -> pd.DataFrame:
        """How near pictures drawn from each prior come to the held-out images; index: sampler.

        For comparison there are the same measures of reconstructions of held-out images, and of training images, which
        are as near as can be. All sets are of one size, since the distances depend on it.
        """
        count = min(self.params.num_samples, len(train_images), len(self.images))
        real = np.array(self.images[:count])
        sets = {name: self._draw(name, count) for name in self.priors.priors}
        sets["reconstructions"] = self._decode(self.posteriors.mean[:count])
        sets["training images"] = np.array(train_images[:count])
        real_features = self.features[:count]
        real_patches = project_patches(real, seed=self.seed)
        inception = self._inception()
        real_inception_features = inception.features(real) if inception else None
        rows = {}
        for name, pictures in sets.items():
            features = judge(self.classifier, pictures, self.params.batch_size).features
            rows[name] = {
                **self._scores(name),
                "frechet_distance": frechet_distance(features, real_features),
                "kernel_distance": kernel_distance(features, real_features),
                "sliced_wasserstein_distance": real_patches.distance(project_patches(pictures, seed=self.seed)).mean,
                "sharpness_ratio": sharpness_ratio(pictures, real),
            }
            if inception and real_inception_features is not None:
                distance = frechet_distance(inception.features(pictures), real_inception_features)
                rows[name]["inception_frechet_distance"] = distance
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("sampler")

    def neighbour_distance_ratio(self, train_images: NDArray[np.uint8]) -> float:
        """Median distance of samples to the nearest training image over that of reconstructions of held-out images.

        Near 0 the samples are copies of training images, mirrored ones too if the training mirrored them. Both kinds of
        pictures are blurred alike.
        """
        pictures = {
            "samples": self._draw(self.priors.best, MAX_NEIGHBOURS),
            "reconstructions": self._decode(self.posteriors.mean[:MAX_NEIGHBOURS]),
        }
        device = torch.device("cpu")
        medians = {}
        for name, tiles in pictures.items():
            queries = to_unit_range(tiles, device)
            references = batches_of(train_images, self.params.batch_size, device)
            _, distances, _ = nearest_images(queries, references, mirrored=self.horizontal_flip)
            medians[name] = float(distances.median())
        return medians["samples"] / medians["reconstructions"]

    def _scores(self, name: str) -> dict[str, float | None]:
        """What chose the prior; empty cells for what is no prior."""
        scores = self.priors.scores.get(name)
        return {
            "heldout_latent_nats": scores.heldout_nats if scores else None,
            "validation_frechet_distance": scores.validation_frechet_distance if scores else None,
            "copied_share": scores.copied_share if scores else None,
        }

    def _draw(self, name: str, count: int) -> NDArray[np.uint8]:
        generator = torch.Generator().manual_seed(self.seed)
        return self._decode(self.priors.priors[name].sample(count, generator, temperature=self.params.temperature))

    def _decode(self, latent: Tensor) -> NDArray[np.uint8]:
        return decode_all(self.model, latent, self.params.batch_size)

    def _inception(self) -> Inception | None:
        if self.params.inception_weights is None:
            return None
        device = self.model.log_sigma.device
        with seeded(self.seed):  # draws weights that are replaced at once
            return Inception(Path(self.params.inception_weights), self.params.batch_size, device)
