"""Images and tables in a zip file, which are read without unpacking it."""

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image

from facevae.data.image_file import SUFFIXES, BadImageError, check_file_size, read_image
from facevae.data.sources.listing import ELSEWHERE, Listing, reason_to_leave_out
from facevae.errors import UserError

DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)  # from zipfile


def list_members(archive: Path, is_wanted: Callable[[PurePosixPath], bool], known: Sequence[str]) -> Listing:
    """The images of a zip whose paths are wanted. The rest is left out, except tables, which have `known` names.

    Raises
    ------
    UserError
        The zip is damaged, or holds two wanted images of the same name.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            files = [name for name in opened.namelist() if not name.endswith("/")]
    except DAMAGE as error:
        raise UserError(f"{archive} is not a complete zip file ({error}): download it again") from error
    names: list[str] = []
    left_out: Counter[str] = Counter()
    for name in files:
        path = PurePosixPath(name)
        if reason := reason_to_leave_out(name.split("/")):
            left_out[reason] += 1
        elif path.suffix.lower() in SUFFIXES and "\\" not in name and is_wanted(path):
            names.append(name)
        elif path.name not in known:
            left_out[ELSEWHERE] += 1
    [(name, count)] = Counter(PurePosixPath(name).name for name in names).most_common(1) or [("", 0)]
    if count > 1:
        raise UserError(f"{archive} holds {name} {count} times: pack the zip again with each image once")
    return Listing(sorted(names), dict(sorted(left_out.items())))


def read_member(archive: Path, members: Sequence[str], position: int) -> Image.Image:
    """Decode the image `members[position]`."""
    try:
        opened = _open_archive(archive)
        check_file_size(opened.getinfo(members[position]).file_size)  # zipfile unpacks no more than this
        with opened.open(members[position]) as file:
            return read_image(file)
    except DAMAGE as error:
        raise BadImageError(f"it cannot be read from {archive.name}: {error}") from error


def find_member(archive: Path, name: str) -> Path | None:
    """A member of this file name that is no system's or hidden file; `read_file` reads it."""
    with zipfile.ZipFile(archive) as opened:
        found = [member for member in opened.namelist() if PurePosixPath(member).name == name]
    return next((archive / member for member in sorted(found) if not reason_to_leave_out(member.split("/"))), None)


def read_file(path: Path) -> bytes:
    """The content of a file, which may be a member of a zip, such as archive.zip/table.csv.

    Raises
    ------
    UserError
        The file cannot be read, or is larger than any table.
    """
    archive = next((parent for parent in path.parents if parent.suffix == ".zip" and parent.is_file()), None)
    try:
        if archive is None:
            return path.read_bytes()
        with zipfile.ZipFile(archive) as opened:
            member = path.relative_to(archive).as_posix()
            check_file_size(opened.getinfo(member).file_size)
            return opened.read(member)
    except (*DAMAGE, BadImageError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


@cache
def _open_archive(archive: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)  # one per process, because forks would share the position in the file
