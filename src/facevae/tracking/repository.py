"""What Git and DVC know of the commits and experiments of a project."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from facevae.errors import UserError

INPUTS = ("src", "stages", "params.yaml", "dvc.yaml")  # a change in these makes the work tree differ from its commit
EXPERIMENT_REF = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")


@dataclass(frozen=True)
class Commit:
    """A commit that may hold a state of the pipeline."""

    revision: str
    milliseconds: int  # since 1970, when it was made
    experiment: str = ""  # the name of the DVC experiment that it is
    baseline: str = ""  # the commit that the experiment started from

    @property
    def label(self) -> str:
        return self.experiment or self.revision[:7]


class Repository:
    """The Git repository around a project's root; outside of one there are no commits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def head(self) -> str:
        """The commit that is checked out, or nothing where there is none."""
        return self._git("rev-parse", "--verify", "--quiet", "HEAD")

    def is_dirty(self) -> bool:
        """Whether code or params in the work tree differ from the commit."""
        return bool(self._git("status", "--porcelain", "--", *INPUTS))

    def experiments(self) -> list[Commit]:
        """All DVC experiments, the oldest first."""
        listed = self._git("for-each-ref", "--format=%(refname) %(objectname) %(committerdate:unix)", "refs/exps")
        found = []
        for line in listed.splitlines():
            name, revision, seconds = line.rsplit(" ", 2)
            if match := EXPERIMENT_REF.fullmatch(name):
                found.append(Commit(revision, int(seconds) * 1000, match[3], match[1] + match[2]))
        return sorted(found, key=lambda commit: (commit.milliseconds, commit.experiment))

    def commit(self, revision: str) -> Commit:
        """A commit by any name that Git knows.

        Raises
        ------
        UserError
            There is no such commit.
        """
        shown = self._git("show", "--no-patch", "--format=%H %ct", f"{revision}^{{commit}}", "--")
        if not shown:
            raise UserError(f"--rev: {revision!r} is no commit of this repository: see `git log --all`")
        full, seconds = shown.split()
        return Commit(full, int(seconds) * 1000)

    def commits(self) -> list[Commit]:
        """All commits of branches and tags that changed what dvc.lock records, the newest first."""
        listed = self._git("log", "--branches", "--tags", "--remotes", "--format=%H %ct", "HEAD", "--", "dvc.lock")
        return [Commit(revision, int(seconds) * 1000) for revision, seconds in map(str.split, listed.splitlines())]

    def is_cached(self, digest: str) -> bool:
        """Whether DVC's cache holds a file or folder of that digest."""
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        folder = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        return (Path(folder.stdout.strip()) / "files" / "md5" / digest[:2] / digest[2:]).exists()

    def _git(self, *arguments: str) -> str:
        """What git prints, or nothing where there is no git, no repository or no such thing."""
        command = ["git", *arguments]
        try:
            return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""
