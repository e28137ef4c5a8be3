"""The model on disk: weights as safetensors, and in the file's header all that is needed to build the model again."""

from pathlib import Path

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facevae.errors import UserError
from facevae.files import write_bytes
from facevae.model import VAE
from facevae.params import Binarization, Likelihood, ModelParams, TrainParams

HEADER = "facevae"  # the one key of the metadata: several would be written in any order


class Header(BaseModel):
    """What a checkpoint says of itself.

    `crop` is the side of the centred square of its images, in source pixels; `fingerprint` that of its training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelParams
    image_size: int
    image_channels: int
    likelihood: Likelihood
    binarization: Binarization
    crop: int | None
    fingerprint: str


def save(path: Path, model: VAE, params: TrainParams, crop: int | None, fingerprint: str) -> None:
    """Write the weights and the header; the same model gives the same bytes."""
    header = Header(
        model=model.params,
        image_size=model.image_size,
        image_channels=model.image_channels,
        likelihood=params.likelihood,
        binarization=params.binarization,
        crop=crop,
        fingerprint=fingerprint,
    )
    write_tensors(path, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, header)


def load(path: Path) -> tuple[VAE, Header]:
    """The model in evaluation mode on the CPU, and its header.

    Raises
    ------
    UserError
        The file is missing, or is no checkpoint of facevae.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: train it by `dvc repro train`, or name another model")
    tensors, text = read_tensors(path)
    try:
        header = Header.model_validate_json(text)
        model = VAE(header.model, header.image_size, header.image_channels)
        model.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of this version of facevae: {error}") from error
    return model.eval(), header


def write_tensors(path: Path, tensors: dict[str, Tensor], header: BaseModel) -> None:
    """Write tensors with a header as the file's only metadata."""
    write_bytes(path, safetensors.torch.save(tensors, metadata={HEADER: header.model_dump_json()}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors, and the header as JSON; a `UserError` where the file is not one that `write_tensors` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {})[HEADER]  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path} is damaged, or not a file of facevae: {error}") from error
