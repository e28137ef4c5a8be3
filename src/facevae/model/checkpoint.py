"""The model on disk: weights as safetensors, with a header that says how to build the model again."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from facevae.config.schema import Binarization, Likelihood, ModelParams, PositiveInt, TrainParams
from facevae.crop import Crop
from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.storage.tensors import build_module, read_tensors, write_tensors


class CheckpointHeader(BaseModel):
    """The model's shape, and what it was trained on.

    `crop` is the centred square cut from each image; None: the largest that fits. `fingerprint` identifies the
    training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelParams
    image_size: PositiveInt
    image_channels: PositiveInt
    likelihood: Likelihood
    binarization: Binarization
    crop: Crop | None
    fingerprint: str


def save(path: Path, model: VAE, params: TrainParams, crop: Crop | None, fingerprint: str) -> None:
    """Write weights and header; the same model gives the same bytes."""
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
    """Read a model, in evaluation mode on the CPU, and its header.

    Raises
    ------
    UserError
        The file is missing or damaged, is not a checkpoint of this version of facevae, or has weights that are not
        finite.
    """
    tensors, header = read_tensors(path, CheckpointHeader, remedy="run `dvc repro train`, or name another model")
    params = header.model
    if max(len(params.channels), len(params.strides), params.residual_blocks) > len(tensors):
        raise UserError(
            f"{path} does not match this version of facevae: it holds fewer tensors than its model has layers"
        )
    model = build_module(path, lambda: VAE(params, header.image_size, header.image_channels), tensors)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{path}: the training exploded, {broken[0]} is not finite. Lower train.learning_rate and run `dvc repro "
            "--force train`"
        )
    return model, header


def require_shape(images: NDArray[np.uint8], header: CheckpointHeader) -> None:
    """Raise a `UserError` unless images (N, height, width, channels) have the shape that the model takes."""
    expected = (header.image_size, header.image_size, header.image_channels)
    if images.shape[1:] != expected:
        raise UserError(
            f"the model takes images of shape {expected}, but the prepared ones have {images.shape[1:]}. "
            "Run `dvc repro train`"
        )
