"""CelebA (Liu et al. 2015) as its authors or Kaggle pack it: a folder or zip of aligned faces, and tables."""

import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from PIL import Image

from facevae.data.image_file import BadImageError, check_file_size, read_image
from facevae.data.sources.attribute_tables import read_celeba_table, rows_of, to_attributes
from facevae.data.sources.folder import read_from_folder
from facevae.data.sources.listing import ELSEWHERE, Listing, list_images, reason_to_leave_out
from facevae.data.sources.source import Source
from facevae.errors import UserError

FOLDER = "img_align_celeba"
ARCHIVE = "img_align_celeba.zip"
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
MEMBER = re.compile(rf"(?:{FOLDER}/)*[^/\\]+\.jpg")
PARTS = {"0": "train", "1": "validation", "2": "test"}
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)  # from zipfile
HOW_TO_GET = (
    "Download CelebA from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html or from Kaggle "
    "(jessicali9530/celeba-dataset)"
)


def open_celeba(root: Path, num_images: int | None, *, official: bool) -> Source:
    """The aligned faces under `root`, sorted by name.

    Parameters
    ----------
    root
        Holds the tables as .txt or .csv, and the images in `img_align_celeba/`, in Kaggle's doubled folder
        `img_align_celeba/img_align_celeba/`, or in `img_align_celeba.zip`, which is read without unpacking.
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
    folder, archive = _find_folder(root), root / ARCHIVE
    if folder is not None:
        listing = _list_folder(folder)
        names = listing.names[:num_images]
        read = partial(read_from_folder, folder, names)
    elif archive.is_file():
        listing = _list_members(archive)
        members = listing.names[:num_images]
        names = [Path(member).name for member in members]
        read = partial(_read_from_archive, archive, members)
    else:
        raise UserError(f"data.root: found neither {root / FOLDER}/*.jpg nor {archive}. {HOW_TO_GET}")
    table = _find_table(root, ATTRIBUTES)
    attributes = to_attributes(read_celeba_table(table), names, table)
    partition = _read_partition(root, names) if official else None
    return Source(names, attributes, read, partition, listing.left_out)


def _find_folder(root: Path) -> Path | None:
    candidates = (root / FOLDER, root / FOLDER / FOLDER)
    return next((folder for folder in candidates if folder.is_dir() and any(folder.glob("*.jpg"))), None)


def _find_table(root: Path, choices: tuple[str, ...]) -> Path:
    for name in choices:
        if (root / name).is_file():
            return root / name
    raise UserError(f"data.root: {root} holds neither {' nor '.join(choices)}. {HOW_TO_GET}")


def _read_partition(root: Path, names: Sequence[str]) -> list[str]:
    path = _find_table(root, PARTITION)
    table = rows_of(read_celeba_table(path), names, path)
    if table.shape[1] != 1:
        raise UserError(f"{path} has {table.shape[1]} values for each image; a split needs one: 0, 1 or 2")
    codes = table.iloc[:, 0]
    unknown = codes[~codes.isin(PARTS)]
    if len(unknown):
        raise UserError(f"{path}: {unknown.index[0]} is in part {unknown.iloc[0]!r}; allowed: 0, 1, 2")
    return [PARTS[code] for code in codes]


def _list_folder(folder: Path) -> Listing:
    """The images in a folder, without those in its subfolders."""
    listing = list_images(folder)
    names = [name for name in listing.names if "/" not in name]
    return Listing(names, _counted(Counter(listing.left_out), len(listing.names) - len(names)))


def _list_members(archive: Path) -> Listing:
    try:
        with zipfile.ZipFile(archive) as opened:
            files = [name for name in opened.namelist() if not name.endswith("/")]
    except DAMAGE as error:
        raise UserError(f"{archive} is not a complete zip file ({error}): download it again. {HOW_TO_GET}") from error
    reasons = {name: reason_to_leave_out(name.split("/")) for name in files}
    members = [name for name in files if reasons[name] is None and re.fullmatch(MEMBER, name)]
    if not members:
        raise UserError(f"{archive} holds no {FOLDER}/*.jpg. {HOW_TO_GET}")
    [(name, count)] = Counter(Path(member).name for member in members).most_common(1)
    if count > 1:
        raise UserError(f"{archive} holds {name} {count} times: pack the zip again with each image once")
    given = Counter(reason for reason in reasons.values() if reason is not None)
    return Listing(sorted(members), _counted(given, len(files) - len(members) - given.total()))


def _counted(left_out: Counter[str], num_elsewhere: int) -> dict[str, int]:
    return dict(sorted((left_out + Counter({ELSEWHERE: num_elsewhere})).items()))


@cache
def _open_archive(archive: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)  # one per process, because forks would share the position in the file


def _read_from_archive(archive: Path, members: Sequence[str], position: int) -> Image.Image:
    try:
        opened = _open_archive(archive)
        check_file_size(opened.getinfo(members[position]).file_size)  # zipfile unpacks no more than this
        with opened.open(members[position]) as file:
            return read_image(file)
    except DAMAGE as error:
        raise BadImageError(f"it cannot be read from {archive.name}: {error}") from error
