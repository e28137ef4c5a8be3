"""The project's files, in the work tree or in a commit, and their digests as DVC computes them."""

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from facevae.errors import UserError

IGNORED = "__pycache__"  # the same as in .dvcignore

Files = Path | zipfile.Path  # of a folder or a file


def open_files(root: Path, revision: str | None) -> Files:
    """The project's root in a Git revision, or in the work tree if that is None. An unknown one is a `UserError`."""
    if revision is None:
        return root
    command = ["git", "archive", "--format=zip", "-0", revision]
    result = subprocess.run(command, cwd=root, capture_output=True, check=False)
    if result.returncode:
        raise UserError(f"{revision}: {result.stderr.decode().strip()}")
    return zipfile.Path(zipfile.ZipFile(io.BytesIO(result.stdout)))


def digest_of(path: Files) -> str | None:
    """DVC's digest of a file or folder, or None if there is neither.

    The digest of a folder is the MD5 of the list of its files' digests, followed by `.dir`.
    """
    if path.is_file():
        with cast("io.BufferedIOBase", path.open("rb")) as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return None
    entries = [{"md5": digest_of(file), "relpath": name} for name, file in sorted(files_below(path))]
    return hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"


def files_below(folder: Files, prefix: str = "") -> Iterator[tuple[str, Files]]:
    """Relative paths and files, without those in linked folders."""
    for path in folder.iterdir():
        if path.is_file():
            yield f"{prefix}{path.name}", path
        elif path.is_dir() and path.name != IGNORED and not (isinstance(path, Path) and path.is_symlink()):
            yield from files_below(path, f"{prefix}{path.name}/")
