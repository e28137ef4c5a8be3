"""What Git and DVC know of the commits and experiments of a project."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from facevae.errors import UserError

INPUTS = ("src", "stages", "params.yaml", "dvc.yaml", "*.dvc")  # what determines a state
RESULTS = ("dvc.lock", "metrics", "plots")
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

    def named(self, revision: str) -> list[Commit]:
        """The commit of any name that Git knows, or those of a range such as main~3..main.

        Raises
        ------
        UserError
            There is no such commit.
        """
        commits = self._log("--no-walk=unsorted", "--end-of-options", revision)
        if not commits:
            raise UserError(f"{revision!r} is no commit of this repository: see `git log --all`")
        return commits

    def commits(self) -> list[Commit]:
        """All commits of branches and tags that changed something of a state, the newest first."""
        return self._log("--full-history", "--branches", "--tags", "--remotes", "HEAD", paths=(*INPUTS, *RESULTS))

    def cache(self) -> Path:
        """Where DVC's cache holds files and folders, by the first two and the other digits of their digests."""
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        folder = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False).stdout.strip()
        return Path(folder or ".dvc/cache") / "files" / "md5"

    def _log(self, *arguments: str, paths: tuple[str, ...] = ()) -> list[Commit]:
        listed = self._git("log", "--format=%H %ct", *arguments, "--", *paths)
        return [Commit(revision, int(seconds) * 1000) for revision, seconds in map(str.split, listed.splitlines())]

    def _git(self, *arguments: str) -> str:
        """What git prints, or nothing where there is no git, no repository or no such revision.

        Raises
        ------
        UserError
            Git refuses to work, as it does in a repository of another user.
        """
        command = ["git", *arguments]
        english = {**os.environ, "LC_ALL": "C"}  # what it says is read below
        try:
            result = subprocess.run(command, cwd=self.root, env=english, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        if result.returncode and not re.search("not a git repository|bad revision|ambiguous argument", result.stderr):
            reason = result.stderr.strip().partition("\n")[0]
            if reason:
                raise UserError(f"git {arguments[0]} failed: {reason}")
        return "" if result.returncode else result.stdout.strip()
