"""MNIST (LeCun et al. 1998) from its IDX files, which torchvision downloads if they are missing.

The files are where `torchvision.datasets.MNIST` puts them. They are read here, because importing torchvision takes
longer than preparing all digits.
"""

import gzip
import logging
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from facevae.data.sources.source import Source
from facevae.errors import UserError

RAW = Path("MNIST") / "raw"
PARTS = ("train", "t10k")
MAX_BYTES = 2**29  # of the data in a file; MNIST's largest has 47 million

logger = logging.getLogger(__name__)


def fetch_mnist(root: Path) -> None:
    """Download the training and test parts, unless one of them is already there.

    Raises
    ------
    UserError
        The download fails.
    """
    if not _parts_in(root / RAW):
        _download(root)


def open_mnist(root: Path, num_images: int | None) -> Source:
    """The first `num_images` digits of the training part and then the test part, with attributes Digit_0 to Digit_9.

    None takes all. If only one part is there, it is used alone, with a warning.

    Raises
    ------
    UserError
        Neither part is there, or a file is damaged or has the wrong content.
    """
    raw = root / RAW
    parts = _parts_in(raw)
    if not parts:
        raise UserError(f"data.root: {raw} has no MNIST files: `dvc repro prepare` downloads them")
    if len(parts) < len(PARTS):
        logger.warning("%s holds only the %s part of MNIST: using that part alone", raw, parts[0])
    pixels = [_read_idx(_find(raw, f"{part}-images-idx3-ubyte"), 3) for part in parts]
    if len({part.shape[1:] for part in pixels}) > 1:
        raise UserError(f"{raw}: training and test images differ in size; delete the folder to download it again")
    images = np.concatenate(pixels)[:num_images]
    digits = np.concatenate([_read_idx(_find(raw, f"{part}-labels-idx1-ubyte"), 1) for part in parts])[:num_images]
    if (digits > 9).any():
        raise UserError(f"{raw}: a label is {digits.max()}, not a digit; delete the folder to download it again")
    if len(images) != len(digits):
        raise UserError(f"{raw}: {len(images)} images but {len(digits)} labels; delete the folder to download it again")
    names = [f"digit-{i:05d}" for i in range(len(images))]
    one_hot = (digits[:, None] == np.arange(10)).astype(np.uint8)
    attributes = pd.DataFrame(one_hot, index=names, columns=[f"Digit_{digit}" for digit in range(10)])
    return Source(names, attributes, partial(_image_at, images))


def _image_at(images: NDArray[np.uint8], position: int) -> Image.Image:
    return Image.fromarray(images[position])


def _parts_in(raw: Path) -> list[str]:
    kinds = ("images-idx3", "labels-idx1")
    return [part for part in PARTS if all(_find(raw, f"{part}-{kind}-ubyte") for kind in kinds)]


def _find(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST  # imports torch, so only for a download

    try:
        MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.root: {root / RAW} has no MNIST files, and the download failed ({error}): put "
            "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same two files of t10k there"
        ) from error


def _read_idx(path: Path | None, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: magic number, sizes as big-endian uint32, data (yann.lecun.com/exdb/mnist)."""
    assert path is not None
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            _, _, kind, rank, *shape = struct.unpack(f">4B{dimensions}I", file.read(4 + 4 * dimensions))
            size = math.prod(shape)
            content = file.read(min(size, MAX_BYTES) + 1)  # one more byte, to notice a file that is too long
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to download it again") from error
    if kind != 0x08 or rank != dimensions or size == 0 or len(content) != size:
        raise UserError(f"{path} is not a complete IDX file of bytes; delete it to download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
