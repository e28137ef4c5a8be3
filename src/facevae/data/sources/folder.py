"""A folder of images and its subfolders, with an optional attributes.csv at the top."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from facevae.data.image_file import FORMATS, read_image
from facevae.data.sources.listing import describe, list_images
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
    import pandas as pd  # takes longer than all else, and the processes that decode do without

    from facevae.data.sources.attribute_tables import read_csv_table, to_attributes

    listing = list_images(root, known={ATTRIBUTES})
    names = listing.names[:num_images]
    if not names:
        raise UserError(f"data.root: {root} holds no image ({', '.join(FORMATS)}){_but(listing.left_out)}")
    for name in names:
        if "\r" in name or name.encode(errors="ignore").decode() != name:
            raise UserError(
                f"data.root: the file name {name!r} under {root} is not UTF-8, or has a carriage return, which CSV "
                "tables do not preserve: rename the file"
            )
    table = root / ATTRIBUTES
    attributes = to_attributes(read_csv_table(table), names, table) if table.is_file() else pd.DataFrame(index=names)
    return Source(names, attributes, partial(read_from_folder, root, names), left_out=listing.left_out)


def read_from_folder(root: Path, names: Sequence[str], position: int) -> Image.Image:
    """Decode the image `names[position]` in the folder `root`."""
    return read_image(root / names[position])


def _but(left_out: Mapping[str, int]) -> str:
    return f", but it holds {describe(left_out)}" if left_out else ""
