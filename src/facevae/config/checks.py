"""Find values in params.yaml that are valid alone but conflict with each other or with the data."""

import logging
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from facevae.config.schema import DataParams, ModelParams, Params, TrainParams
from facevae.errors import UserError

LARGEST_TO_ONE_PIXEL = 16  # pixels: the largest image that the classifier's four halving blocks reduce to one
ATTRIBUTE_LISTS = ("evaluate.attributes", "figures.attributes", "figures.latent_map_attributes")
MAX_GROUPS = 8  # as in facevae.model.vae, which is not imported here because it imports torch
MAX_WEIGHTS = 2**31  # of an encoder: 8 GiB, or 32 GiB with the gradient and Adam's moments


def find_problems(params: Params) -> list[str]:
    """One line for each conflict between keys: the key, its value and what to do."""
    return [
        *_geometry_problems(params.data, params.model),
        *_data_problems(params.data),
        *_train_problems(params.train),
        *_sharpen_problems(params),
        *_refinement_problems(params),
        *_warmup_problems(params),
        *_normalization_problems(params),
        *_use_problems(params),
    ]


def require_attributes(params: Params, known: Iterable[str]) -> None:
    """Raise a `UserError` if one of the `ATTRIBUTE_LISTS` names an attribute that is not `known`."""
    for key in ATTRIBUTE_LISTS:
        require_known(key, _value(params, key), known)


def require_known(key: str, attributes: Sequence[str], known: Iterable[str]) -> None:
    """Raise a `UserError` if the attributes under a key of the params are not all `known`."""
    known = sorted(known)
    for attribute in attributes:
        if attribute not in known:
            hint = f"Known attributes: {', '.join(known)}" if known else "It has none: set the list to []"
            raise UserError(f"{key}: {attribute!r} is not an attribute of this data set. {hint}")


def warn_of_large_batch(key: str, batch_size: int, num_images: int) -> None:
    """Log a warning if a batch has more images than there are."""
    if batch_size > num_images:
        message = "%s: %d, but there are only %d training images, so each step takes all of them"
        logging.getLogger(__name__).warning(message, key, batch_size, num_images)


def _geometry_problems(data: DataParams, model: ModelParams) -> Iterator[str]:
    if len(model.channels) != len(model.strides):
        yield (
            f"model.strides: {list(model.strides)} has length {len(model.strides)}, but model.channels "
            f"{list(model.channels)} has length {len(model.channels)}: give one stride for each convolution"
        )
    total_stride = math.prod(model.strides)
    if data.image_size % total_stride:
        yield (
            f"data.image_size: {data.image_size} is not divisible by {total_stride}, the product of "
            f"model.strides {list(model.strides)}: change one of them"
        )
    for key in ("kernel_size", "decoder_kernel_size"):
        size = getattr(model, key)
        if 1 in model.strides and size % 2 == 0:
            yield f"model.{key}: {size} is even, but a stride of 1 needs an odd kernel to keep the size: make it odd"
        if size < max(model.strides):
            yield f"model.{key}: {size} is less than the stride {max(model.strides)} and would skip pixels: raise it"
    largest = max(model.kernel_size, model.decoder_kernel_size)
    if (num_weights := _num_encoder_weights(data, model, largest)) > MAX_WEIGHTS:
        yield (
            f"model.channels: {list(model.channels)}, kernels of {largest}, model.residual_blocks "
            f"{model.residual_blocks} and model.latent_dim {model.latent_dim} make a network of "
            f"{num_weights:,} weights, but at most {MAX_WEIGHTS:,} are allowed: lower some of them"
        )


def _num_encoder_weights(data: DataParams, model: ModelParams, kernel_size: int) -> int:
    """Weights of the convolutions, the residual blocks and the two linear layers to the latent, without biases."""
    widths = (data.channels, *model.channels)
    convolutions = kernel_size**2 * sum(before * after for before, after in pairwise(widths))
    residual = model.residual_blocks * 2 * 3**2 * widths[-1] ** 2
    num_features = widths[-1] * (data.image_size // math.prod(model.strides)) ** 2
    return convolutions + residual + 2 * num_features * model.latent_dim


def _data_problems(data: DataParams) -> Iterator[str]:
    if data.root.startswith("~"):
        yield f"data.root: {data.root!r} begins with ~, which only a shell replaces: write the whole path of the folder"
    if data.source == "avatars" and data.num_images is None:
        yield "data.num_images: null, but avatars are drawn on demand: set a number"
    if data.source == "avatars" and data.crop is not None:
        yield f"data.crop: {data.crop}, but avatars are drawn at data.image_size: set it to null"
    if data.split == "official" and data.source != "celeba":
        yield f"data.split: 'official', but only celeba has an official split, not {data.source}: use random"
    if data.split == "official" and data.keep_duplicates_together:
        yield (
            "data.keep_duplicates_together: true would change the official split: set it to false, or data.split to "
            "random"
        )
    if data.split == "random" and data.validation_fraction + data.test_fraction >= 1:
        yield (
            f"data.validation_fraction: {data.validation_fraction} and data.test_fraction {data.test_fraction} "
            "leave nothing to train on: their sum must be below 1"
        )


def _train_problems(train: TrainParams) -> Iterator[str]:
    if train.micro_batch_size is not None and train.micro_batch_size > train.batch_size:
        yield (
            f"train.micro_batch_size: {train.micro_batch_size} is larger than train.batch_size {train.batch_size}: "
            "lower it, or set it to null"
        )
    for key in ("muon_learning_rate", "momentum"):
        value = getattr(train, key)
        if train.optimizer == "muon" and value is None:
            yield f"train.{key}: null, but train.optimizer is muon: set a number (docs/parameters.md), or use adam"
        if train.optimizer == "adam" and value is not None:
            yield f"train.{key}: {value}, but train.optimizer is adam: set it to null, or use muon"
    if train.likelihood == "bernoulli" and train.binarization == "none":
        yield (
            "train.binarization: 'none', but train.likelihood 'bernoulli' needs black and white images: use per_epoch, "
            "fixed or threshold"
        )
    if train.likelihood != "bernoulli" and train.binarization != "none":
        yield (
            f"train.binarization: {train.binarization!r}, but train.likelihood {train.likelihood!r} models all "
            "intensities: use none, or set train.likelihood to bernoulli"
        )
    for key, wanted in (("precision", "float32"), ("device", "cpu")):
        value = getattr(train, key)
        if train.numerics == "portable" and value != wanted:
            yield (
                f"train.{key}: {value!r} depends on the processor, but train.numerics is portable: set it to {wanted}, "
                "or train.numerics to native"
            )
    if train.kl_warmup_epochs > train.epochs:
        yield (
            f"train.kl_warmup_epochs: {train.kl_warmup_epochs:g} is longer than train.epochs {train.epochs}, so the KL "
            "would never get its full weight train.beta: lower it, or raise train.epochs"
        )
    clip, skip = train.clip_gradient_norm, train.skip_gradient_norm
    if clip is not None and skip is not None and clip >= skip:
        yield (
            f"train.clip_gradient_norm: {clip:g} never clips, because steps with gradients above "
            f"train.skip_gradient_norm {skip:g} are skipped: lower it below that, or set one of them to null"
        )


def _sharpen_problems(params: Params) -> Iterator[str]:
    sharpen, size = params.sharpen, params.data.image_size
    if not sharpen.epochs:
        return
    if params.train.likelihood == "bernoulli":
        yield (
            f"sharpen.epochs: {sharpen.epochs}, but train.likelihood 'bernoulli' models black and white images, which "
            "are sharp: set it to 0"
        )
    if params.train.num_importance_samples > 1:
        yield (
            f"sharpen.epochs: {sharpen.epochs}, but sharpening takes one draw of each posterior, not "
            f"train.num_importance_samples {params.train.num_importance_samples}: set sharpen.epochs to 0, or the "
            "number of draws to 1"
        )
    if params.model.refinement_steps:
        yield (
            f"sharpen.epochs: {sharpen.epochs}, but with model.refinement_steps {params.model.refinement_steps} "
            "latents depend on the decoder, which sharpening changes: set one of them to 0"
        )
    num_levels = len(sharpen.discriminator_channels)
    if 2**num_levels > size:
        yield (
            f"sharpen.discriminator_channels: {list(sharpen.discriminator_channels)} has {num_levels} levels, each of "
            f"which halves the maps, but data.image_size is {size}: remove some"
        )


def _refinement_problems(params: Params) -> Iterator[str]:
    if params.model.refinement_steps and params.train.likelihood == "bernoulli":
        yield (
            f"model.refinement_steps: {params.model.refinement_steps}, but refinement needs a squared error, and "
            "train.likelihood is 'bernoulli': set it to 0"
        )


def _warmup_problems(params: Params) -> Iterator[str]:
    """A training that ends before the learning rate has risen to its value, if the number of images is known."""
    data, train = params.data, params.train
    if data.num_images is None:
        return
    held_out = data.validation_fraction + data.test_fraction if data.split == "random" else 0
    num_train = math.ceil(data.num_images * (1 - held_out)) + 1  # at most: fractions are rounded
    num_steps = train.epochs * math.ceil(num_train / train.batch_size)
    if train.learning_rate_warmup_steps >= num_steps:
        yield (
            f"train.learning_rate_warmup_steps: {train.learning_rate_warmup_steps} is not below the number of steps, "
            f"at most {num_steps}, so train.learning_rate would never be reached: lower it, or raise train.epochs"
        )


def _normalization_problems(params: Params) -> Iterator[str]:
    """Normalisation of a single value, which has no variance.

    Feature maps of one pixel need two images in a pass for batch normalisation, and two channels in a group for group
    normalisation. Micro-batches are of nearly equal size: a `micro_batch_size` of 2 may leave one image alone, one of 3
    leaves at least two together.
    """
    train, size = params.train, params.data.image_size
    key, least = ("batch_size", 2) if train.micro_batch_size is None else ("micro_batch_size", 3)
    number = getattr(train, key)
    if params.model.normalization == "batch" and math.prod(params.model.strides) == size and number < least:
        yield (
            f"train.{key}: {number} may leave an image alone, and batch normalisation needs two images when feature "
            f"maps shrink to one pixel: raise it to {least}, or set model.normalization to group"
        )
    to_one_pixel = zip(params.model.channels, accumulate(params.model.strides, operator.mul), strict=False)
    narrow = [width for width, total_stride in to_one_pixel if total_stride == size and MAX_GROUPS % width == 0]
    if params.model.normalization == "group" and narrow:
        yield (
            f"model.channels: {list(params.model.channels)} has {narrow[0]} where feature maps shrink to one pixel, "
            f"so that group normalisation has groups of a single value: raise it above {MAX_GROUPS}, or set "
            "model.normalization to none"
        )
    if size <= LARGEST_TO_ONE_PIXEL and params.classifier.batch_size < 3:
        yield (
            f"classifier.batch_size: {params.classifier.batch_size} may leave an image alone, and at data.image_size "
            f"{size} the classifier's batch normalisation needs two images: raise it to 3"
        )


def _use_problems(params: Params) -> Iterator[str]:
    for name, split in (("evaluate", params.evaluate.split), ("figures", params.figures.split)):
        if split == "test" and params.data.split == "random" and params.data.test_fraction == 0:
            yield f"{name}.split: 'test', but data.test_fraction is 0: use validation, or raise data.test_fraction"
    for key in (*ATTRIBUTE_LISTS, "evaluate.strengths"):
        values = _value(params, key)
        if len(set(values)) < len(values):
            yield f"{key}: {list(values)} has a value twice: remove one"
    strengths = params.figures.strengths
    if len(strengths) % 2 == 0 or strengths[len(strengths) // 2] != 0 or list(strengths) != sorted(set(strengths)):
        yield (
            f"figures.strengths: {list(strengths)} must rise from negative to positive with 0 in the middle, "
            "e.g. [-1.5, 0, 1.5]"
        )


def _value(params: Params, key: str) -> Any:
    return operator.attrgetter(key)(params)
