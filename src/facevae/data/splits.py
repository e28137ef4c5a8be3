"""Which split each image belongs to, and whether the later stages can work with that."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from facevae.config.needs import Needs
from facevae.config.schema import DataParams
from facevae.data.prepared import SPLITS, SplitName
from facevae.data.sources.source import Source
from facevae.errors import UserError


def assign_splits(source: Source, params: DataParams, seed: int) -> NDArray[np.str_]:
    """The split of each image of `source`: its official one, or that of a seeded permutation.

    Splits are assigned before bad images are known, so they do not depend on which images are bad.
    """
    if params.split == "official":
        assert source.partition is not None  # config.checks allows "official" only for sources that have one
        return np.array(source.partition)
    num_images = len(source.names)
    num_validation = round(num_images * params.validation_fraction)
    num_test = round(num_images * params.test_fraction)
    order = np.random.default_rng(seed).permutation(num_images)
    splits = np.full(num_images, "train", dtype="<U10")
    splits[order[:num_validation]] = "validation"
    splits[order[num_validation : num_validation + num_test]] = "test"
    return splits


def check_splits(splits: NDArray[np.str_], attributes: pd.DataFrame, params: DataParams, needs: Needs) -> None:
    """Compare the splits, and the attributes of the images in them, with what is needed.

    Parameters
    ----------
    splits, attributes
        Of each image that is used, in the same order.

    Raises
    ------
    UserError
        A split has too few images, or an attribute does not vary in the training images.
    """
    for split in SPLITS:
        number = int((splits == split).sum())
        is_wanted = split != "test" or params.split == "official" or params.test_fraction > 0
        if number == 0 and is_wanted:
            raise UserError(f"{_origin(len(splits), params)} leave no {split} images: {_remedy(split, params)}")
        if number < 2 and split in needs.pairs:
            raise UserError(
                f"{_origin(len(splits), params)} leave {number} {split} image(s), but {needs.pairs[split]} needs two: "
                f"{_remedy(split, params)}"
            )
    training = attributes[splits == "train"]
    for key, attribute in needs.varied:
        if training[attribute].min() == training[attribute].max():
            share = "all" if training[attribute].min() else "none"
            raise UserError(
                f"{key}: {attribute!r} belongs to {share} of the {len(training)} training images, so nothing can be "
                "learnt of it: take it out of the list, or use more images"
            )


def _origin(num_images: int, params: DataParams) -> str:
    if params.split == "official":
        return f"data.num_images: the first {num_images} images, split as CelebA's authors did,"
    return (
        f"data: {num_images} images with split {params.split!r}, validation_fraction {params.validation_fraction} and "
        f"test_fraction {params.test_fraction}"
    )


def _remedy(split: SplitName, params: DataParams) -> str:
    if params.split == "official":
        more = "" if params.num_images is None else "raise data.num_images, set it to null to take all images, or "
        return f"{more}set data.split to random"
    fewer = "use more images" if params.num_images is None else "raise data.num_images"
    return f"{fewer} or {'lower the fractions' if split == 'train' else 'raise the fraction'}"
