"""The prepared set on disk: uint8 arrays read as memory maps, attributes, and a manifest that says what they are.

Layout of the folder: {train,validation,test}.npy of shape (N, height, width, channels), attributes.csv with one row
for each image (name, split, then 0 or 1 for each attribute) in the order of the arrays, and manifest.json, which is
written last.
"""

import hashlib
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facevae.config.paths import PREPARED
from facevae.errors import UserError
from facevae.storage.atomic import naming

MANIFEST = "manifest.json"
ATTRIBUTES = "attributes.csv"
SPLITS: tuple["SplitName", ...] = ("train", "validation", "test")

SplitName = Literal["train", "validation", "test"]


class BadFile(BaseModel):
    """An image that was left out, and why."""

    name: str
    reason: str


class Manifest(BaseModel):
    """What a prepared set holds.

    `digest` is the SHA-256 of the arrays' bytes and of attributes.csv: equal digests are equal data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    image_size: Annotated[int, Field(ge=1, le=1024)]  # pixels, height = width
    channels: Literal[1, 3]
    crop: Annotated[int, Field(ge=1)] | None
    split: str
    num_images: Annotated[dict[SplitName, Annotated[int, Field(ge=0)]], Field(min_length=len(SPLITS))]
    bad_images: list[BadFile]
    digest: str


class PreparedSet:
    """Read access to a prepared set.

    Raises
    ------
    UserError
        The folder or one of its files is missing, or a file is not what the manifest says.
    """

    def __init__(self, folder: Path = PREPARED) -> None:
        self.folder = folder
        try:
            self.manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{folder / MANIFEST} is missing: run `dvc repro prepare`") from None
        except (OSError, ValidationError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged: run `dvc repro --force prepare`\n{error}") from error

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def verified(self) -> Self:
        """The set itself, once everything has been read and compared with the manifest's digest.

        Raises
        ------
        UserError
            A bit of the arrays or of the attributes is not as it was written.
        """
        shape = (self.manifest.image_size, self.manifest.image_size, self.manifest.channels)
        arrays = [hashlib.sha256(self.images(split).data) for split in SPLITS]
        try:
            attributes = hashlib.sha256((self.folder / ATTRIBUTES).read_bytes())
        except OSError as error:
            raise UserError(
                f"{self.folder / ATTRIBUTES} cannot be read ({error}): run `dvc repro --force prepare`"
            ) from error
        if data_digest(shape, [part.hexdigest() for part in (*arrays, attributes)]) != self.digest:
            raise UserError(
                f"{self.folder} is damaged: it is not what its manifest says; run `dvc repro --force prepare`"
            )
        return self

    def images(self, split: SplitName) -> NDArray[np.uint8]:
        """All images of a split, as a memory map of shape (N, height, width, channels)."""
        path = self.folder / f"{split}.npy"
        size, channels = self.manifest.image_size, self.manifest.channels
        expected = (self.manifest.num_images[split], size, size, channels)
        try:
            images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy raises errors of every kind for a damaged header
            raise UserError(f"{path} cannot be read ({error}): run `dvc repro --force prepare`") from error
        if images.shape != expected or images.dtype != np.uint8 or not images.flags.c_contiguous:
            raise UserError(
                f"{path} holds {images.dtype} of shape {images.shape}, and the manifest says uint8 of shape "
                f"{expected}: run `dvc repro --force prepare`"
            )
        return images

    def attributes(self, split: SplitName) -> pd.DataFrame:
        """Values 0 and 1, one row for each image of the split in the order of `images`, index: names."""
        table = self._table
        return table[table["split"] == split].drop(columns="split")

    @cached_property
    def _table(self) -> pd.DataFrame:
        path = self.folder / ATTRIBUTES
        try:
            table = pd.read_csv(path, dtype={"name": str}).set_index("name")
            is_known = table.drop(columns="split").isin((0, 1))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}): run `dvc repro --force prepare`") from error
        if not is_known.to_numpy().all():
            raise UserError(f"{path} has other values than 0 and 1: run `dvc repro --force prepare`")
        counts = {split: int((table["split"] == split).sum()) for split in SPLITS}
        if counts != self.manifest.num_images:
            raise UserError(
                f"{path} has {counts} rows, and the manifest says {self.manifest.num_images}: "
                "run `dvc repro --force prepare`"
            )
        return table


def varied_attributes(attributes: pd.DataFrame) -> pd.DataFrame:
    """The columns of attributes that some images have and some have not."""
    return attributes.loc[:, attributes.min() < attributes.max()]


def data_digest(shape: tuple[int, ...], parts: Iterable[str]) -> str:
    """The digest of a whole set, from its images' shape and the digests of its arrays and of its attributes."""
    digest = hashlib.sha256(repr(shape).encode())
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


class ArrayWriter:
    """A .npy file of uint8 images that grows as chunks arrive, so that nothing but the chunk is in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.length = 0
        self.digest = hashlib.sha256()
        self._path = path
        self._shape = shape
        self._file = path.open("wb")
        self._header_size = self._write_header()

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add images of shape (N, *shape)."""
        content = np.ascontiguousarray(images)
        self.digest.update(content.data)
        with naming(self._path):
            self._file.write(content.data)
        self.length += len(images)

    def _write_header(self) -> int:
        self._file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.length, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)  # padded by NumPy so that the first axis may grow
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with naming(self._path), self._file:
            if self._write_header() != self._header_size:
                raise RuntimeError("the header of a .npy file changed its size as the array grew")
            self._file.flush()
            os.fsync(self._file.fileno())
