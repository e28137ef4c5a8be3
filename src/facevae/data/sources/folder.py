"""Any folder of images, searched with its subfolders, optionally with attributes.csv at its top."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from facevae.data.image_file import SUFFIXES, read_image
from facevae.data.sources.attribute_tables import read_csv_table, to_attributes
from facevae.data.sources.source import Source
from facevae.errors import UserError

ATTRIBUTES = "attributes.csv"


def open_folder(root: Path, num_images: int | None) -> Source:
    """The images below `root`, sorted by their relative path.

    Raises
    ------
    UserError
        `root` is no folder, holds no image, or its attributes.csv lacks rows or has other values than -1, 0 and 1.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder; put the images there, or name the folder that has them")
    names = sorted(list_images(root))[:num_images]
    if not names:
        raise UserError(f"data.root: {root} holds no image ({', '.join(sorted(SUFFIXES))})")
    for name in names:
        if "\r" in name or name.encode(errors="ignore").decode() != name:
            raise UserError(
                f"data.root: the file name {name!r} under {root} is not UTF-8, or has a carriage return, which no "
                "table keeps: rename it"
            )
    table = root / ATTRIBUTES
    attributes = to_attributes(read_csv_table(table), names, table) if table.is_file() else pd.DataFrame(index=names)
    return Source(names, attributes, partial(read_from_folder, root, names))


def list_images(root: Path) -> list[str]:
    """Relative paths, with forward slashes, of the files whose name ends as an image's; hidden ones are left out."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    names = (path.relative_to(root) for path in paths)
    return [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]


def read_from_folder(root: Path, names: Sequence[str], position: int) -> Image.Image:
    """Decode the image at a position of `names`."""
    return read_image(root / names[position])
