"""Where the files of CelebA and CelebAMask-HQ are, in the folders and zips that people have."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from facevae.data.image_file import SUFFIXES
from facevae.data.sources.folder import read_from_folder
from facevae.data.sources.hints import hint
from facevae.data.sources.listing import ELSEWHERE, Listing, list_images
from facevae.data.sources.zip_images import find_member, list_members, read_member
from facevae.errors import UserError

HOW_TO_GET = (
    "Download CelebA from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html or from Kaggle "
    "(jessicali9530/celeba-dataset)"
)
PLACES = ("", "Img", "Anno", "Eval")  # as on the authors' site
HOMES = (*PLACES, *(f"{name}/{place}" for name in ("celeba", "CelebA", "CelebAMask-HQ") for place in PLACES))


@dataclass(frozen=True)
class Edition:
    """How the files of an edition are called, the best first: folders and zips of images, and tables."""

    folders: tuple[str, ...]
    zips: tuple[str, ...]
    attributes: tuple[str, ...]
    partition: tuple[str, ...]


EDITIONS = (
    Edition(
        folders=("img_align_celeba", "img_align_celeba/img_align_celeba", "img_align_celeba_png"),
        zips=("img_align_celeba.zip", "archive.zip", "celeba-dataset.zip"),
        attributes=("list_attr_celeba.txt", "list_attr_celeba.csv"),
        partition=("list_eval_partition.txt", "list_eval_partition.csv"),
    ),
    Edition(
        folders=("CelebA-HQ-img",),
        zips=("CelebAMask-HQ.zip",),
        attributes=("CelebAMask-HQ-attribute-anno.txt",),
        partition=(),
    ),
)


@dataclass(frozen=True)
class Faces:
    """The images that were found.

    Attributes
    ----------
    edition
        The names of their tables.
    place
        Their folder or zip.
    listing
        File names in the folder, or paths in the zip.
    """

    edition: Edition
    place: Path
    listing: Listing

    def names(self, num_images: int | None) -> list[str]:
        """The file names of the first images."""
        return [PurePosixPath(name).name for name in self.listing.names[:num_images]]

    def reader(self, num_images: int | None) -> Callable[[int], Image.Image]:
        """A function that decodes the image at a position."""
        read = read_from_folder if self.place.is_dir() else read_member
        return partial(read, self.place, self.listing.names[:num_images])


def find_faces(root: Path) -> Faces:
    """The images below `root`. A folder comes before a zip, which may be what it was unpacked from.

    Raises
    ------
    UserError
        There are none, or those of both editions; a zip is damaged.
    """
    found = [faces for edition in EDITIONS if (faces := _in_folder(root, edition) or _in_zip(root, edition))]
    if len(found) > 1:
        raise UserError(
            f"data.root: {root} holds CelebA, {found[0].place}, and CelebAMask-HQ, {found[1].place}: set data.root to "
            "a folder with only one of them"
        )
    if not found:
        names = [f"{root / edition.folders[0]}/" for edition in EDITIONS] + [str(root / EDITIONS[0].zips[0])]
        raise UserError(f"data.root: found none of {', '.join(names)}.{hint(root, 'celeba')} {HOW_TO_GET}")
    return found[0]


def find_table(root: Path, faces: Faces, choices: Sequence[str]) -> Path:
    """The first of the tables that is below `root` or, as archive.zip/table.csv, in the zip of the images.

    Raises
    ------
    UserError
        There is none.
    """
    for name in choices:
        for home in HOMES:
            if (root / home / name).is_file():
                return root / home / name
        if faces.place.is_file() and (member := find_member(faces.place, name)):
            return member
    raise UserError(f"data.root: {root} holds neither {' nor '.join(choices)}. {HOW_TO_GET}")


def _in_folder(root: Path, edition: Edition) -> Faces | None:
    """Without images in subfolders, which are counted."""
    for place in (root / home / folder for home in HOMES for folder in edition.folders):
        if place.is_dir() and any(path.suffix.lower() in SUFFIXES for path in place.iterdir()):
            listing = list_images(place)
            names = [name for name in listing.names if "/" not in name]
            elsewhere = Counter({ELSEWHERE: len(listing.names) - len(names)})
            return Faces(edition, place, Listing(names, dict(Counter(listing.left_out) + elsewhere)))
    return None


def _in_zip(root: Path, edition: Edition) -> Faces | None:
    folders = {part for path in (*HOMES, *edition.folders) for part in PurePosixPath(path).parts}
    tables = (*edition.attributes, *edition.partition)
    for place in (root / home / name for home in HOMES for name in edition.zips):
        if place.is_file():
            listing = list_members(place, lambda path: folders.issuperset(path.parent.parts), tables)
            if listing.names:
                return Faces(edition, place, listing)
            if place.name != "archive.zip":  # which may be anything
                raise UserError(f"{place} holds no {edition.folders[0]}/*.jpg. {HOW_TO_GET}")
    return None
