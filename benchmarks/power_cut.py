"""Simulate a power cut: new files that no program has synced to disk become empty.

strace tells which files were synced. Files that existed before keep their content, which SQLite's journal and the file
system's handling of rewritten files ensure. DVC's locks are left out: DVC refuses to start with an empty one, and
names it.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

WRITEBACK_SECONDS = 30  # after which the system writes to disk by itself
SYNC = re.compile(r"(?P<process>\d+) +(?P<time>[\d.]+) (?:fsync|fdatasync)\(\d+<(?P<path>[^>]*)>(?P<rest>.*)")
RESUMED = re.compile(r"(?P<process>\d+) +(?P<time>[\d.]+) <\.\.\. (?:fsync|fdatasync) resumed>")
RENAME = re.compile(r'\d+ +[\d.]+ rename\w*\((?:AT_FDCWD<[^>]*>, )?"([^"]*)", (?:AT_FDCWD<[^>]*>, )?"([^"]*)".* = 0')


class PowerCut:
    """A power cut while a command works below `folder`.

    Attributes
    ----------
    tracer
        The prefix of the command that traces which files are synced.
    """

    def __init__(self, folder: Path, trace: Path) -> None:
        self.tracer = ("strace", "-f", "--seccomp-bpf", "-qq", "-ttt", "-y", "-e", "signal=none",
                       "-e", "trace=fsync,fdatasync,rename,renameat,renameat2", "-o", str(trace))  # fmt: skip
        self._folder = folder
        self._trace = trace
        self._known = {path.stat().st_ino for path in self._files()}

    def lose(self) -> list[Path]:
        """Empty the files that would be lost now. All processes must have ended."""
        synced = {path.stat().st_ino: moment for path, moment in self._synced().items() if path.exists()}
        oldest = time.time() - WRITEBACK_SECONDS
        lost = []
        for path in self._files():
            status = path.stat()
            if status.st_ino not in self._known and status.st_mtime > max(oldest, synced.get(status.st_ino, 0)):
                path.chmod(0o644)
                os.truncate(path, 0)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                path.chmod(status.st_mode)
                lost.append(path)
        return lost

    def _files(self) -> Iterator[Path]:
        """All files but Git's, DVC's locks, the trace and compiled Python code."""
        for folder, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if name not in (".git", "tmp", "__pycache__")]
            for path in (Path(folder, name) for name in names):
                if path != self._trace and path.is_file() and not path.is_symlink():
                    yield path

    def _synced(self) -> dict[Path, float]:
        """When each file was last synced, in seconds since 1970, by its present name."""
        synced: dict[Path, float] = {}
        waiting: dict[str, Path] = {}
        for line in self._trace.read_text(errors="replace").splitlines():
            if match := SYNC.match(line):
                if "unfinished" in match["rest"]:
                    waiting[match["process"]] = Path(match["path"])
                else:
                    synced[Path(match["path"])] = float(match["time"])
            elif (match := RESUMED.match(line)) and match["process"] in waiting:
                synced[waiting.pop(match["process"])] = float(match["time"])
            elif match := RENAME.match(line):
                old, new = (self._folder / name for name in match.groups())
                for path in [path for path in synced if path == old or old in path.parents]:
                    synced[new / path.relative_to(old)] = synced.pop(path)
        return synced
