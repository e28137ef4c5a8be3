"""Writing results so that a file is either whole or not there, and reading tables that may have suffered since."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a partial one beside it, which takes its name when it is on the disk.

    A partial file that a kill leaves behind is overwritten by the next attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with naming(path):
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
    """Where a file lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` name the file that is being written: an open file that finds the disk full does not."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def sync_folder(folder: Path) -> None:
    """Have the name of a new file survive a power cut as its content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(target: Path, new: Path) -> None:
    """Give the folder `new` the name `target`, under which at no moment of a kill or a power cut half a folder lies.

    The files in `new` have to be on the disk. What a kill leaves of the former folder is removed by the next attempt.
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
