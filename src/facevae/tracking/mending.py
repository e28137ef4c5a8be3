"""What keeps DVC from starting after it was killed, and how it is put right.

DVC writes its own small files in place. Killed while it does, it leaves them empty or cut short.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")  # which files are in use by which process
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


def mend(root: Path) -> Iterator[str]:
    """Put such files right, and tell of each what was done.

    A `dvc.lock` that is cut short gives way to that of the last commit, or to none: `dvc repro` then runs what has no
    entry, or takes its results from DVC's run cache. One with the marks of a merge is left to the user.
    """
    if (root / RUNNING).is_file() and not (root / RUNNING).stat().st_size:
        (root / RUNNING).unlink()
        yield f"{RUNNING} was empty, since DVC was killed while it wrote it: removed"
    content = (root / LOCK).read_bytes() if (root / LOCK).is_file() else None
    if content is None or b"<<<<<<< " in content or _is_whole(content):
        return
    from facevae.storage.atomic import write_bytes  # imports pandas: only where there is something to mend

    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], cwd=root, capture_output=True, check=False)
    (root / DAMAGED).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(root / DAMAGED, content)
    kept = f"{LOCK} is damaged, as where DVC was killed while it wrote it; it is kept as {DAMAGED}"
    if committed.returncode:
        (root / LOCK).unlink()
        yield f"{kept}, and nothing is in its place, since no commit has one"
    else:
        write_bytes(root / LOCK, committed.stdout)
        yield f"{kept}, and that of the last commit is in its place"


def _is_whole(content: bytes) -> bool:
    """Whether DVC would read it."""
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return True
