"""The prepared set on disk: uint8 arrays read as memory maps, attributes, and a manifest that says what they are.

Layout of the folder: {train,validation,test}.npy of shape (N, height, width, channels), attributes.csv with one row
for each image (name, split, then 0 or 1 for each attribute) in the order of the arrays, and manifest.json, which is
written last.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from facevae.errors import UserError
from facevae.layout import PREPARED

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
    image_size: int  # pixels, height = width
    channels: int
    crop: int | None
    split: str
    num_images: dict[SplitName, int]
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
        except ValidationError as error:
            raise UserError(f"{folder / MANIFEST} is damaged: run `dvc repro --force prepare`\n{error}") from error

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def images(self, split: SplitName) -> NDArray[np.uint8]:
        """All images of a split, as a memory map of shape (N, height, width, channels)."""
        path = self.folder / f"{split}.npy"
        size, channels = self.manifest.image_size, self.manifest.channels
        expected = (self.manifest.num_images[split], size, size, channels)
        try:
            images: NDArray[np.uint8] = np.load(path, mmap_mode="r" if expected[0] else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): run `dvc repro --force prepare`") from error
        if images.shape != expected or images.dtype != np.uint8:
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
            table = pd.read_csv(path, index_col="name", dtype={"name": str})
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): run `dvc repro --force prepare`") from error
        counts = {split: int((table["split"] == split).sum()) for split in SPLITS}
        if counts != self.manifest.num_images:
            raise UserError(
                f"{path} has {counts} rows, and the manifest says {self.manifest.num_images}: "
                "run `dvc repro --force prepare`"
            )
        return table
