"""Write files and folders so that they are either whole or absent, even after a kill or a power cut."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a partial name beside it, sync it to disk, then rename it.

    The next attempt overwrites a partial file that a kill left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with name_in_errors(path):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_path(path: Path) -> Path:
    """The name of a file until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Put `path` into every `OSError`: writing to an open file on a full disk raises one without a name."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def sync_folder(folder: Path) -> None:
    """Make the names of new files in a folder survive a power cut, as their content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(target: Path, new: Path) -> None:
    """Rename the folder `new` to `target`, so that `target` is never half written, even after a kill or a power cut.

    The files in `new` must already be synced to disk. The next attempt removes what a kill left of the former folder.
    """
    former = target.with_name(f"{target.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    try:
        new.rename(target)
    except BaseException:
        if former.exists():
            former.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(former, ignore_errors=True)
