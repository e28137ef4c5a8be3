"""Repair of two files that keep DVC from starting if it was killed while it wrote them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

from facevae.storage.atomic import write_bytes

LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")  # which process uses which files
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


def mend(root: Path) -> Iterator[str]:
    """Remove an empty rwlock and replace a truncated `dvc.lock` by the last commit's; yield what was done.

    If no commit has a `dvc.lock`, it is removed: `dvc repro` then runs all stages or takes them from DVC's run cache.
    A `dvc.lock` with merge conflict markers is left to the user.
    """
    if (root / RUNNING).is_file() and not (root / RUNNING).stat().st_size:
        (root / RUNNING).unlink()
        yield f"{RUNNING} was empty, because DVC was killed while it wrote it: removed"
    content = (root / LOCK).read_bytes() if (root / LOCK).is_file() else None
    if content is None or b"<<<<<<< " in content or _is_whole(content):
        return
    command = ["git", "show", f"HEAD:./{LOCK}"]
    committed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    write_bytes(root / DAMAGED, content)
    if committed.returncode:
        (root / LOCK).unlink()
        done = "removed, because no commit has one"
    else:
        write_bytes(root / LOCK, committed.stdout)
        done = "replaced by the last commit's"
    yield f"{LOCK} was damaged, probably because DVC was killed while it wrote it: {done}. A copy is in {DAMAGED}"


def _is_whole(content: bytes) -> bool:
    """Whether DVC can read a dvc.lock of this content."""
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return True
