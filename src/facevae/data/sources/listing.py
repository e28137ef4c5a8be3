"""Which files of a folder are the user's images, and how many others are left out for which reason."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from facevae.data.image_file import SUFFIXES, is_image
from facevae.errors import UserError

HIDDEN = "hidden, or in a hidden folder"
SYSTEM = "made by a system, such as Thumbs.db or in __MACOSX or @eaDir"
LINK = "a link to a folder"
UNREAD = "an image in a format that is not read, such as HEIC"
NO_IMAGE = "no image"
NO_PARQUET = "no Parquet file"
ELSEWHERE = "not in the folder of the images"

SYSTEM_NAMES = frozenset(  # in lower case
    {
        "__pycache__",  # in .dvcignore
        "__macosx",  # AppleDouble files, in zips that macOS made
        "@eadir",  # thumbnails of Synology's file servers
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".svgz", ".psd", ".tga", ".ico", ".eps", ".pdf"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"),
)


@dataclass(frozen=True)
class Listing:
    """The images of a folder or archive.

    Attributes
    ----------
    names
        Sorted relative paths with forward slashes.
    left_out
        Number of files by reason.
    """

    names: list[str]
    left_out: dict[str, int]


def list_images(root: Path, *, known: Collection[str] = ()) -> Listing:
    """The images in a folder and its subfolders, known by their suffix or, failing that, by their content.

    `known` are relative paths of files that are expected there, such as tables; they are neither images nor left out.
    """
    return list_files(root, _reason_by_content, known=known)


def list_files(
    root: Path, reason_of: Callable[[os.DirEntry[str]], str | None], *, known: Collection[str] = ()
) -> Listing:
    """Walk a folder and its subfolders. Links to files are followed, links to folders are not.

    Parameters
    ----------
    reason_of
        Why a file, or a link to a folder, is left out; None if it is wanted.
    known
        Relative paths of files that are neither wanted nor left out.

    Raises
    ------
    UserError
        A folder cannot be read.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    pending: list[tuple[str, ...]] = [()]
    while pending:
        parts = pending.pop()
        for entry in _entries(root.joinpath(*parts)):
            path = (*parts, entry.name)
            name = "/".join(path)
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif name not in known:
                reason = reason_to_leave_out(path) or reason_of(entry)
                if reason is None:
                    names.append(name)
                else:
                    left_out[reason] += 1
    return Listing(sorted(names), dict(sorted(left_out.items())))


def check_names(root: Path, names: Iterable[str]) -> None:
    """Raise a `UserError` if a table could not hold one of the names."""
    for name in names:
        if "\r" in name or name.encode(errors="ignore").decode() != name:
            raise UserError(
                f"data.root: the file name {name!r} under {root} is not UTF-8, or has a carriage return, which CSV "
                "tables do not preserve: rename the file"
            )


def describe(left_out: Mapping[str, int]) -> str:
    """Files left out, in words, such as "2 (no image), 1 (a link to a folder)"."""
    return ", ".join(f"{number} ({reason})" for reason, number in left_out.items())


def reason_to_leave_out(parts: Sequence[str]) -> str | None:
    """Why a file is none of the user's images, by the parts of its relative path; None if they give no reason."""
    if any(part.lower() in SYSTEM_NAMES for part in parts):
        return SYSTEM
    if any(part.startswith(".") for part in parts):  # AppleDouble files beside the images too
        return HIDDEN
    return None


def _reason_by_content(entry: os.DirEntry[str]) -> str | None:
    suffix, path = _suffix(entry.name), Path(entry.path)
    if entry.is_symlink() and path.is_dir():
        return LINK
    if suffix in SUFFIXES or (path.is_file() and is_image(path)):
        return None  # a damaged one is reported when it is decoded
    return UNREAD if suffix in UNREAD_SUFFIXES else NO_IMAGE


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"data.root: the folder {folder} cannot be read ({error.strerror}): give this user permission to read it, "
            "or move it out of data.root"
        ) from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # a Path costs more than the rest of the walk
