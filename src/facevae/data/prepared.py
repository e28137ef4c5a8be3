"""The prepared set on disk: images as memory-mapped uint8 arrays, attributes, and a manifest.

The folder holds {train,validation,test}.npy of shape (N, height, width, channels); attributes.csv with one row for
each image in the order of the arrays (name, split, then 0 or 1 for each attribute); and manifest.json, which is written
last.
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
from facevae.crop import Crop
from facevae.errors import UserError
from facevae.storage.atomic import name_in_errors

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

    `bad_images` could not be used. `left_out` counts, by reason, the files under `data.root` that are no images of the
    set. `duplicates` counts the images that equal one of an earlier split, pixel by pixel. `digest` is the
    `data_digest` of the arrays and of attributes.csv: equal digests mean equal data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    image_size: Annotated[int, Field(ge=1, le=1024)]  # pixels, height = width
    channels: Literal[1, 3]
    crop: Crop | None
    split: str
    num_images: Annotated[dict[SplitName, Annotated[int, Field(ge=0)]], Field(min_length=len(SPLITS))]
    bad_images: list[BadFile]
    left_out: dict[str, Annotated[int, Field(ge=1)]]
    duplicates: dict[SplitName, Annotated[int, Field(ge=1)]]
    digest: str

    def summary(self) -> str:
        """One line: the number of images in each split, and what was left out."""
        parts = [", ".join(f"{number} {split}" for split, number in self.num_images.items()) + " images"]
        if self.bad_images:
            parts.append(f"{len(self.bad_images)} bad image(s) left out")
        if self.left_out:
            others = ", ".join(f"{number} ({reason})" for reason, number in self.left_out.items())
            parts.append(f"other files left out: {others}")
        return "; ".join(parts)


class PreparedSet:
    """Reads a prepared set.

    Raises
    ------
    UserError
        The manifest is missing or damaged. The methods raise it for every other file.
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
        """This set, after comparing all arrays and attributes with the manifest's digest.

        Raises
        ------
        UserError
            A file is missing or has changed, even by one bit.
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
                f"{self.folder} is damaged: its content does not match its manifest; run `dvc repro --force prepare`"
            )
        return self

    def images(self, split: SplitName) -> NDArray[np.uint8]:
        """All images of a split as a memory map (N, height, width, channels)."""
        path = self.folder / f"{split}.npy"
        size, channels = self.manifest.image_size, self.manifest.channels
        expected = (self.manifest.num_images[split], size, size, channels)
        try:
            images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy raises all kinds of errors for a damaged header
            raise UserError(f"{path} cannot be read ({error}): run `dvc repro --force prepare`") from error
        if images.shape != expected or images.dtype != np.uint8 or not images.flags.c_contiguous:
            raise UserError(
                f"{path} holds {images.dtype} of shape {images.shape}, but the manifest says uint8 of shape "
                f"{expected}: run `dvc repro --force prepare`"
            )
        return images

    def attributes(self, split: SplitName) -> pd.DataFrame:
        """The attributes of a split: values 0 and 1, one row for each image in the order of `images`, index: names."""
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
            raise UserError(f"{path} has values other than 0 and 1: run `dvc repro --force prepare`")
        counts = {split: int((table["split"] == split).sum()) for split in SPLITS}
        if counts != self.manifest.num_images:
            raise UserError(
                f"{path} has {counts} rows, but the manifest says {self.manifest.num_images}: "
                "run `dvc repro --force prepare`"
            )
        return table


def varied_attributes(attributes: pd.DataFrame) -> pd.DataFrame:
    """The columns of those attributes that some images have and others lack."""
    return attributes.loc[:, attributes.min() < attributes.max()]


def data_digest(shape: tuple[int, ...], parts: Iterable[str]) -> str:
    """SHA-256 of a set's image shape and of the digests of its arrays and attributes."""
    digest = hashlib.sha256(repr(shape).encode())
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


class ArrayWriter:
    """Writes a .npy file of uint8 images chunk by chunk, so that only one chunk is in memory.

    `length` and `digest` are the number of images so far and the SHA-256 of their bytes.
    """

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
        with name_in_errors(self._path):
            self._file.write(content.data)
        self.length += len(images)

    def _write_header(self) -> int:
        self._file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.length, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)  # padded by NumPy, so that the first axis can grow
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with name_in_errors(self._path), self._file:
            if self._write_header() != self._header_size:
                raise RuntimeError("the header of a .npy file changed in size as the array grew")
            self._file.flush()
            os.fsync(self._file.fileno())
