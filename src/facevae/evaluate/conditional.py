"""Samples that were asked to have an attribute, or to lack it: how often they do, and how much they vary."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from facevae.config.schema import EvaluateParams
from facevae.evaluate.judge import THRESHOLD, Classifier, judge
from facevae.model.inference import decode_all
from facevae.model.vae import VAE
from facevae.priors.flow_matching import FlowMatching
from facevae.priors.normal import Sampler

MAX_SAMPLES = 200  # of each kind
COLUMNS = ("attribute", "asked_for", "success", "unconditional", "diversity", "image_diversity", "num_samples")


def conditional_table(
    model: VAE,
    classifier: Classifier,
    flow: FlowMatching,
    images: NDArray[np.uint8],
    attributes: pd.DataFrame,
    params: EvaluateParams,
    *,
    seed: int,
) -> pd.DataFrame:
    """Ask the flow for faces with and without each of `params.attributes`, and let the classifier judge them.

    Parameters
    ----------
    images, attributes
        Held-out images, uint8 (N, height, width, channels), and their attributes.

    Returns
    -------
    pandas.DataFrame
        attribute; asked_for: "with" or "without"; success: share of the samples that are so; unconditional: share of
        samples that are so if nothing is asked for; diversity: mean distance between the samples, relative to samples
        for which nothing is asked; image_diversity: the same ratio for held-out images that are so, empty if there are
        fewer than two; num_samples.
    """
    count = min(params.num_samples, MAX_SAMPLES)

    def draw(sampler: Sampler) -> NDArray[np.uint8]:
        latent = sampler.sample(count, torch.Generator().manual_seed(seed), temperature=params.temperature)
        return decode_all(model, latent, params.batch_size)

    def judged(pictures: NDArray[np.uint8]) -> pd.DataFrame:
        """Which attributes the pictures have; columns: attributes."""
        has = judge(classifier, pictures, params.batch_size).probabilities > THRESHOLD
        return pd.DataFrame(has.numpy(), columns=classifier.attributes)

    free = draw(flow)
    free_has = judged(free)
    free_distance, image_distance = mean_distance(free), mean_distance(images[:MAX_SAMPLES])
    rows = []
    for attribute in params.attributes:
        of_images = attributes[attribute].to_numpy(dtype=bool)
        for asked_for, wanted in (("with", True), ("without", False)):
            asked = draw(flow.given(present=[attribute]) if wanted else flow.given(absent=[attribute]))
            alike = np.array(images[np.flatnonzero(of_images == wanted)[:MAX_SAMPLES]])
            rows.append(
                (
                    attribute,
                    asked_for,
                    float((judged(asked)[attribute] == wanted).mean()),
                    float((free_has[attribute] == wanted).mean()),
                    mean_distance(asked) / free_distance,
                    mean_distance(alike) / image_distance if len(alike) > 1 else None,
                    count,
                )
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def conditional_metrics(table: pd.DataFrame) -> dict[str, float]:
    """The lowest share of samples that are as asked for, and the mean diversity; empty if nothing was asked for."""
    if table.empty:
        return {}
    return {
        "conditional_success": float(table["success"].min()),
        "conditional_diversity": float(table["diversity"].mean()),
    }


def mean_distance(pictures: NDArray[np.uint8]) -> float:
    """Mean Euclidean distance between two different pictures of (N, height, width, channels), in [0, 1] units."""
    return float(torch.pdist(torch.from_numpy(pictures.reshape(len(pictures), -1) / 255)).mean())
