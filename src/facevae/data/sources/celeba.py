"""CelebA (Liu et al. 2015) or CelebAMask-HQ (Lee et al. 2020): a folder or zip of aligned faces, and tables."""

from collections.abc import Sequence
from pathlib import Path

from facevae.data.sources.attribute_tables import read_celeba_table, rows_of, to_attributes
from facevae.data.sources.celeba_layouts import Faces, find_faces, find_table
from facevae.data.sources.source import Source
from facevae.errors import UserError

PARTS = {"0": "train", "1": "validation", "2": "test"}


def open_celeba(root: Path, num_images: int | None, *, official: bool) -> Source:
    """The aligned faces under `root`, sorted by name.

    Parameters
    ----------
    root
        Holds the tables as .txt or .csv, and the images in a folder or in a zip, which is read without unpacking: as on
        the authors' site, as torchvision puts them, or as Kaggle packs them.
    num_images
        How many images to take from the front; None takes all.
    official
        Whether to read CelebA's official split.

    Raises
    ------
    UserError
        A file is missing (the message says where it should be and how to get it), the zip is damaged or holds an
        image twice, or a table is malformed or lacks rows.
    """
    faces = find_faces(root)
    names = faces.names(num_images)
    table = find_table(root, faces, faces.edition.attributes)
    attributes = to_attributes(read_celeba_table(table), names, table)
    partition = _read_partition(root, faces, names) if official else None
    return Source(names, attributes, faces.reader(num_images), partition, faces.listing.left_out)


def _read_partition(root: Path, faces: Faces, names: Sequence[str]) -> list[str]:
    if not faces.edition.partition:
        raise UserError(f"data.split: 'official', but the images in {faces.place} have no official split: use random")
    path = find_table(root, faces, faces.edition.partition)
    table = rows_of(read_celeba_table(path), names, path)
    if table.shape[1] != 1:
        raise UserError(f"{path} has {table.shape[1]} values for each image; a split needs one: 0, 1 or 2")
    codes = table.iloc[:, 0]
    unknown = codes[~codes.isin(PARTS)]
    if len(unknown):
        raise UserError(f"{path}: {unknown.index[0]} is in part {unknown.iloc[0]!r}; allowed: 0, 1, 2")
    return [PARTS[code] for code in codes]
