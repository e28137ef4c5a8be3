"""A folder of images and its subfolders, with an optional attributes.csv at the top."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from facevae.data.image_file import FORMATS, read_image
from facevae.data.sources.attribute_tables import read_csv_table, to_attributes
from facevae.data.sources.hints import hint
from facevae.data.sources.listing import check_names, describe, list_images
from facevae.data.sources.source import Source
from facevae.errors import UserError

ATTRIBUTES = "attributes.csv"


def open_folder(root: Path, num_images: int | None) -> Source:
    """The first `num_images` images below `root` in the order of their relative paths; None takes all.

    Raises
    ------
    UserError
        `root` is not a folder, holds no image or a folder that cannot be read, or its attributes.csv lacks rows or has
        values other than -1, 0 and 1.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder: put the images there, or set data.root to their folder")
    listing = list_images(root, known={ATTRIBUTES})
    names = listing.names[:num_images]
    if not names:
        but = f", but {describe(listing.left_out)}" if listing.left_out else ""
        raise UserError(f"data.root: {root} holds no image ({', '.join(FORMATS)}){but}.{hint(root, 'folder')}")
    check_names(root, names)
    table = root / ATTRIBUTES
    attributes = to_attributes(read_csv_table(table), names, table) if table.is_file() else pd.DataFrame(index=names)
    return Source(names, attributes, partial(read_from_folder, root, names), left_out=listing.left_out)


def read_from_folder(root: Path, names: Sequence[str], position: int) -> Image.Image:
    """Decode the image `names[position]` in the folder `root`."""
    return read_image(root / names[position])
