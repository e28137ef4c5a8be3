"""MNIST (LeCun et al. 1998), Fashion-MNIST (arXiv 1708.07747) and KMNIST (arXiv 1812.01718) from their IDX files.

If there are none, torchvision downloads MNIST. The files are read here, because importing torchvision takes longer than
preparing all digits.
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
KINDS = {"images": "idx3", "labels": "idx1"}
SETS = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's folders
FASHION = ["T_shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle_boot"]
KANA = ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]
MAX_BYTES = 2**29  # of the data in a file; MNIST's largest has 47 million

logger = logging.getLogger(__name__)


def fetch_mnist(root: Path) -> None:
    """Download MNIST's training and test parts, unless one of them or another set in IDX files is already there.

    Raises
    ------
    UserError
        The download fails, or something else is there.
    """
    if not _places(root):
        if other := next((path for path in _files(root) if path.parent != root / RAW), None):
            raise UserError(
                f"data.root: {other} is there, but not both files of a part, such as train-images-idx3-ubyte and "
                "train-labels-idx1-ubyte: add the missing one, or set data.root to another folder, to download MNIST"
            )
        _download(root)


def open_mnist(root: Path, num_images: int | None) -> Source:
    """The first `num_images` pictures of the training part and then the test part, with one attribute a class.

    The attributes of digits are Digit_0 to Digit_9. None takes all pictures. If only one part is there, it is used
    alone, with a warning.

    Raises
    ------
    UserError
        Neither part is there, several sets are, or a file is damaged or has the wrong content.
    """
    places = _places(root)
    if not places:
        raise UserError(f"data.root: {root / RAW} has no MNIST files: `dvc repro prepare` downloads them")
    if len(places) > 1:
        raise UserError(f"data.root: {', '.join(map(str, places))} each have files: set data.root to one of them")
    [raw] = places
    parts = _parts_in(raw)
    if len(parts) < len(PARTS):
        logger.warning("%s holds only the %s part: using that part alone", raw, parts[0])
    pixels = [_read_idx(_find(raw, part, "images"), 3) for part in parts]
    if len({part.shape[1:] for part in pixels}) > 1:
        raise UserError(f"{raw}: training and test images differ in size; delete the folder to download it again")
    images = np.concatenate(pixels)[:num_images]
    labels = np.concatenate([_read_idx(_find(raw, part, "labels"), 1) for part in parts])[:num_images]
    if (labels > 9).any():
        raise UserError(f"{raw}: a label is {labels.max()}, not one of ten classes; use MNIST, Fashion-MNIST or KMNIST")
    if len(images) != len(labels):
        raise UserError(f"{raw}: {len(images)} images but {len(labels)} labels; delete the folder to download it again")
    kind, classes = _classes(raw.resolve())
    names = [f"{kind}-{i:05d}" for i in range(len(images))]
    one_hot = (labels[:, None] == np.arange(10)).astype(np.uint8)
    return Source(names, pd.DataFrame(one_hot, index=names, columns=classes), partial(_image_at, images))


def _classes(raw: Path) -> tuple[str, list[str]]:
    """What a picture is called, and the names of the ten classes, by the name of the set's folder."""
    name = (raw.parent if raw.name == "raw" else raw).name.lower()
    if "fashion" in name:
        return "garment", FASHION
    if "kmnist" in name or "kuzushiji" in name:
        return "kana", [f"Kana_{sound}" for sound in KANA]
    return "digit", [f"Digit_{digit}" for digit in range(10)]


def _image_at(images: NDArray[np.uint8], position: int) -> Image.Image:
    return Image.fromarray(images[position])


def _places(root: Path) -> list[Path]:
    """The folders that hold a whole part: those of torchvision, `root` itself, or a `raw` below it."""
    return [place for place in (*(root / name / "raw" for name in SETS), root, root / "raw") if _parts_in(place)]


def _parts_in(raw: Path) -> list[str]:
    return [part for part in PARTS if all(_find(raw, part, kind) for kind in KINDS)]


def _find(raw: Path, part: str, kind: str) -> Path | None:
    """The file of a part, also with a dot for a hyphen, compressed, or in a folder of its name, as Kaggle packs it."""
    names = [f"{part}-{kind}{separator}{KINDS[kind]}-ubyte" for separator in "-."]
    paths = (raw / folder / f"{name}{suffix}" for name in names for folder in ("", name) for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _files(root: Path) -> list[Path]:
    """Files below `root` that belong to such a set, or to one in another format."""
    return sorted(path for pattern in ("*ubyte", "*ubyte.gz", "*mnist*.npz") for path in root.rglob(pattern))


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
            most = MAX_BYTES if path.suffix == ".gz" else path.stat().st_size  # a forged size must not cost memory
            content = file.read(min(size, most) + 1)  # one more byte, to notice a file that is too long
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to download it again") from error
    if kind != 0x08 or rank != dimensions or size == 0 or len(content) != size:
        raise UserError(f"{path} is not a complete IDX file of bytes; delete it to download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
