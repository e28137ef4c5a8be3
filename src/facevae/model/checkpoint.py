"""The model on disk: weights as safetensors, and in the file's header all that is needed to build the model again."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from facevae.config.schema import Binarization, Likelihood, ModelParams, PositiveInt, TrainParams
from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.storage.tensors import build_module, read_tensors, write_tensors


class CheckpointHeader(BaseModel):
    """What a checkpoint says of itself.

    `crop` is the side of the centred square of its images, in source pixels; `fingerprint` that of its training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelParams
    image_size: PositiveInt
    image_channels: PositiveInt
    likelihood: Likelihood
    binarization: Binarization
    crop: PositiveInt | None
    fingerprint: str


def save(path: Path, model: VAE, params: TrainParams, crop: int | None, fingerprint: str) -> None:
    """Write the weights and the header; the same model gives the same bytes."""
    header = CheckpointHeader(
        model=model.params,
        image_size=model.image_size,
        image_channels=model.image_channels,
        likelihood=params.likelihood,
        binarization=params.binarization,
        crop=crop,
        fingerprint=fingerprint,
    )
    write_tensors(path, model.state_dict(), header)


def load(path: Path) -> tuple[VAE, CheckpointHeader]:
    """The model in evaluation mode on the CPU, and its header.

    Raises
    ------
    UserError
        The file is missing, is no checkpoint of facevae, or has weights that are no numbers.
    """
    tensors, header = read_tensors(
        path, CheckpointHeader, remedy="train it by `dvc repro train`, or name another model"
    )
    params = header.model
    if max(len(params.channels), len(params.strides), params.residual_blocks) > len(tensors):
        raise UserError(
            f"{path} does not match this version of facevae: it holds fewer tensors than its model has layers"
        )
    model = build_module(path, lambda: VAE(params, header.image_size, header.image_channels), tensors)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{path} is of a training that exploded: {broken[0]} is not finite; train anew, by `dvc repro --force "
            "train`, with a lower train.learning_rate"
        )
    return model, header


def require_shape(images: NDArray[np.uint8], header: CheckpointHeader) -> None:
    """Raise a `UserError` where images (N, height, width, channels) are not of the shape that the model takes."""
    expected = (header.image_size, header.image_size, header.image_channels)
    if images.shape[1:] != expected:
        raise UserError(
            f"the model was trained on images of shape {expected}, and the prepared ones have {images.shape[1:]}: "
            "run `dvc repro train`"
        )
