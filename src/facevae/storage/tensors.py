"""Tensors and a header in one safetensors file, without pickle.

A digest of header and tensors is stored too, because safetensors itself does not notice a flipped bit.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from facevae.errors import UserError
from facevae.storage.atomic import write_bytes

METADATA = "facevae"  # the only metadata key: safetensors writes several in no fixed order
DIGEST_LENGTH = 64  # characters of a SHA-256 in hexadecimal

HeaderT = TypeVar("HeaderT", bound=BaseModel)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def write_tensors(path: Path, tensors: dict[str, Tensor], header: BaseModel) -> None:
    """Write tensors and a header; equal tensors and headers give equal bytes."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = header.model_dump_json()
    write_bytes(path, safetensors.torch.save(whole, metadata={METADATA: _digest(whole, text) + text}))


def read_tensors(path: Path, header: type[HeaderT], *, remedy: str) -> tuple[dict[str, Tensor], HeaderT]:
    """The tensors, on the CPU, and the header.

    Parameters
    ----------
    remedy
        How to get the file, for the error if it is missing.

    Raises
    ------
    UserError
        The file is missing, a folder, damaged, or does not match this version of facevae.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'is missing'}: {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {})[METADATA]
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path} is damaged, or was not written by facevae: {error}") from error
    digest, text = stored[:DIGEST_LENGTH], stored[DIGEST_LENGTH:]
    if _digest(tensors, text) != digest:
        raise UserError(f"{path} is damaged: its content does not match its digest")
    try:
        return tensors, header.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path} does not match this version of facevae: {error}") from error


def require_model(path: Path, found: str, expected: str) -> None:
    """Raise a `UserError` if a file belongs to another model: `found` and `expected` are training fingerprints."""
    if found != expected:
        raise UserError(
            f"{path} belongs to another model (training fingerprint {found}, not {expected}): "
            "make it for this model with `dvc repro evaluate`"
        )


def build_module(path: Path, make: Callable[[], ModuleT], tensors: dict[str, Tensor]) -> ModuleT:
    """The module that `make` builds, with the given weights, in evaluation mode.

    The weights are first compared with a module on the meta device, so that a forged header with huge sizes costs no
    memory.

    Raises
    ------
    UserError
        `make` fails, or its module has other weights than these.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            sketch = make()
    except (RuntimeError, TypeError, IndexError) as error:  # impossible sizes
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} does not match this version of facevae: {reason}") from error
    check_tensors(path, sketch.state_dict(), tensors)
    module = make()
    module.load_state_dict(tensors)
    return module.eval()


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` if tensors from a file do not have the expected names, types and shapes."""
    for name in sorted(expected.keys() | found.keys()):
        described = [_describe(tensors.get(name)) for tensors in (found, expected)]
        if described[0] != described[1]:
            raise UserError(
                f"{path} does not match this version of facevae: {name} is {described[0]} and should be {described[1]}"
            )


def _describe(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of the tensors' names, types, shapes and values, and of the header's text."""
    return hashlib.sha256(safetensors.torch.save(tensors) + text.encode()).hexdigest()
