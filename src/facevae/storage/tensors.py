"""Tensors and a header in one safetensors file, which is read whole or not at all; nothing in it is pickled.

The header comes with a digest of everything, since safetensors itself would not notice a flipped bit.
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

METADATA = "facevae"  # the one key of the metadata: several would be written in any order
DIGEST_LENGTH = 64  # characters of a SHA-256 in hexadecimal

HeaderT = TypeVar("HeaderT", bound=BaseModel)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def write_tensors(path: Path, tensors: dict[str, Tensor], header: BaseModel) -> None:
    """Write tensors with a header; the same give the same bytes."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = header.model_dump_json()
    write_bytes(path, safetensors.torch.save(whole, metadata={METADATA: _digest(whole, text) + text}))


def read_tensors(path: Path, header: type[HeaderT], *, remedy: str) -> tuple[dict[str, Tensor], HeaderT]:
    """Tensors on the CPU, and the header.

    Raises
    ------
    UserError
        The file is missing or a folder (`remedy` says how to come by it), damaged, or not of this version of facevae.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'is missing'}: {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {})[METADATA]
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path} is damaged, or not a file of facevae: {error}") from error
    digest, text = stored[:DIGEST_LENGTH], stored[DIGEST_LENGTH:]
    if _digest(tensors, text) != digest:
        raise UserError(f"{path} is damaged: it is not what was written")
    try:
        return tensors, header.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path} is not of this version of facevae: {error}") from error


def require_model(path: Path, found: str, expected: str) -> None:
    """Raise a `UserError` where a file's model, by the fingerprint of its training, is not the one expected."""
    if found != expected:
        raise UserError(f"{path} belongs to another model (training {found}, not {expected}): evaluate this one")


def build_module(path: Path, make: Callable[[], ModuleT], tensors: dict[str, Tensor]) -> ModuleT:
    """The module that a header tells of, in evaluation mode, with the weights of its file.

    Raises
    ------
    UserError
        The weights are not those of such a module: no memory is taken for sizes that only the header has.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            sketch = make()
    except (RuntimeError, TypeError, IndexError) as error:  # sizes that no tensor can have
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not of this version of facevae: {reason}") from error
    check_tensors(path, sketch.state_dict(), tensors)
    module = make()
    module.load_state_dict(tensors)
    return module.eval()


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` where the tensors of a file have other names, types or shapes than they should."""
    for name in sorted(expected.keys() | found.keys()):
        described = [_describe(tensors.get(name)) for tensors in (found, expected)]
        if described[0] != described[1]:
            raise UserError(
                f"{path} is not of this version of facevae: {name} is {described[0]} and should be {described[1]}"
            )


def _describe(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """Of names, types, shapes and values of the tensors, and of the header's text."""
    return hashlib.sha256(safetensors.torch.save(tensors) + text.encode()).hexdigest()
