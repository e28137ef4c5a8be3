"""The project's files as they lie in the work tree or in a commit, and their digests as DVC computes them."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from facevae.errors import UserError

IGNORED = "__pycache__"  # as .dvcignore has it


class Files(Protocol):
    """Read access to files by their path relative to the project's root, with slashes."""

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None where there is none."""

    def digest(self, path: str) -> str | None:
        """DVC's digest of a file or folder, or None where there is none."""


def open_files(root: Path, revision: str | None) -> Files:
    """The files of a Git revision, or of the work tree where it is None."""
    return WorkTree(root) if revision is None else CommittedFiles(root, revision)


class WorkTree:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        file = self._root / path
        return file.read_bytes() if file.is_file() else None

    def digest(self, path: str) -> str | None:
        target = self._root / path
        if target.is_file():
            return _file_digest(target)
        if not target.is_dir():
            return None
        files = (file for file in target.rglob("*") if file.is_file() and IGNORED not in file.parts)
        return folder_digest({file.relative_to(target).as_posix(): _file_digest(file) for file in files})


class CommittedFiles:
    """The files of a Git commit, below the folder of the repository that is the project's root.

    Raises
    ------
    UserError
        The revision is unknown.
    """

    def __init__(self, root: Path, revision: str) -> None:
        command = ["git", "archive", "--format=tar", revision]
        result = subprocess.run(command, cwd=root, capture_output=True, check=False)
        if result.returncode:
            raise UserError(f"{revision}: {result.stderr.decode().strip()}")
        self._contents: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    self._contents[member.name] = file.read()

    def read(self, path: str) -> bytes | None:
        return self._contents.get(path)

    def digest(self, path: str) -> str | None:
        if path in self._contents:
            return hashlib.md5(self._contents[path]).hexdigest()
        below = {name: content for name, content in self._contents.items() if name.startswith(f"{path}/")}
        if not below:
            return None
        return folder_digest(
            {
                str(PurePosixPath(name).relative_to(path)): hashlib.md5(content).hexdigest()
                for name, content in below.items()
                if IGNORED not in PurePosixPath(name).parts
            }
        )


def folder_digest(digests: dict[str, str]) -> str:
    """DVC's digest of a folder from those of its files by relative path: the MD5 of their list, and `.dir`."""
    entries = [{"md5": digests[name], "relpath": name} for name in sorted(digests)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
