"""The commits and DVC experiments of a project, and the tags that lead from a run back to them."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from facevae.errors import UserError

INPUTS = ("src", "stages", "params.yaml", "dvc.yaml", "*.dvc")  # they determine a state
RESULTS = ("dvc.lock", "metrics", "plots")
EXPERIMENT_REF = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")

COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "facevae.git_dirty"  # "false": code and params are those of the commit
HELD_TAG = "facevae.git_held"  # "true": the commit holds the results as well
EXPERIMENT_TAG = "facevae.dvc_experiment"  # the names of all DVC experiments with this state
REVISION_TAG = "facevae.dvc_experiment_revision"  # their commits in the same order, as far as they are known
BASELINE_TAG = "facevae.dvc_baseline_revision"


@dataclass(frozen=True)
class Commit:
    """A commit that may hold a state of the pipeline."""

    revision: str
    milliseconds: int  # when it was committed, since 1970
    experiment: str = ""  # the name of its DVC experiment, if it is one
    baseline: str = ""  # the commit that the experiment started from


class Repository:
    """The Git repository around a project's root. Outside a repository there are no commits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def head(self) -> str:
        """The commit that is checked out, or an empty text if there is none."""
        return self._git("rev-parse", "--verify", "--quiet", "HEAD")

    def setting(self, key: str) -> str:
        """A value of Git's configuration, or an empty text."""
        return self._git("config", "--get", key)

    def experiments(self) -> list[Commit]:
        """All DVC experiments, oldest first.

        Git lists them in 10 ms. DVC's own API takes 0.8 s, most of it for its imports.
        """
        listed = self._git("for-each-ref", "--format=%(objectname) %(committerdate:unix) %(refname)", "refs/exps")
        found = []
        for line in listed.splitlines():
            revision, seconds, name = line.split(" ", 2)
            if match := EXPERIMENT_REF.fullmatch(name):
                found.append(Commit(revision, int(seconds) * 1000, match[3], match[1] + match[2]))
        return sorted(found, key=lambda commit: (commit.milliseconds, commit.experiment))

    def named(self, revision: str) -> list[Commit]:
        """The commits of a name or a range such as main~3..main, or a `UserError` if there are none."""
        commits = self._log("--no-walk=unsorted", "--end-of-options", revision)
        if not commits:
            raise UserError(f"{revision!r} is not a commit of this repository: `git log --all` lists them")
        return commits

    def commits(self) -> list[Commit]:
        """The commits of all branches and tags that changed a state's inputs or results, newest first."""
        return self._log("--full-history", "--branches", "--tags", "--remotes", "HEAD", paths=(*INPUTS, *RESULTS))

    def work_tree_tags(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """Tags for the commit that is checked out and whether the work tree differs from it.

        Empty if the run already has a commit that holds its results.
        """
        if recorded.get(HELD_TAG) == "true":
            return {}
        head = self.head()
        is_dirty = bool(self._git("status", "--porcelain", "--", *INPUTS))
        return {COMMIT_TAG: head, DIRTY_TAG: str(is_dirty).lower() if head else ""}

    def _log(self, *arguments: str, paths: tuple[str, ...] = ()) -> list[Commit]:
        listed = self._git("log", "--format=%H %ct", *arguments, "--", *paths)
        return [Commit(revision, int(seconds) * 1000) for revision, seconds in map(str.split, listed.splitlines())]

    def _git(self, *arguments: str) -> str:
        """The output of git, or an empty text if there is no git, no repository or no such revision.

        Any other failure, such as git's refusal to read another user's repository, is a `UserError`.
        """
        command = ["git", *arguments]
        english = {**os.environ, "LC_ALL": "C"}  # its messages are read below
        try:
            result = subprocess.run(command, cwd=self.root, env=english, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        if result.returncode == 0:
            return result.stdout.strip()
        reason = result.stderr.strip().partition("\n")[0]
        if reason and not re.search("not a git repository|bad revision|ambiguous argument", result.stderr):
            raise UserError(f"git {arguments[0]} failed: {reason}")
        return ""


def experiment_names(tags: Mapping[str, str]) -> dict[str, str]:
    """The DVC experiments of a run by name, each with its commit, or an empty text if that is unknown."""
    names, revisions = (tags.get(tag, "").split(", ") for tag in (EXPERIMENT_TAG, REVISION_TAG))
    return {name: revision for name, revision in zip_longest(names, revisions, fillvalue="") if name}


def commit_tags(recorded: Mapping[str, str], commits: Sequence[Commit]) -> dict[str, str]:
    """Tags of a run whose state these commits hold, the newest last.

    Experiment names are those of this clone, and those that other clones gave to other commits.
    """
    tags: dict[str, str] = {}
    experiments = [commit for commit in commits if commit.experiment]
    if experiments:
        known = experiment_names(recorded)
        own = {commit.experiment: commit.revision for commit in experiments}
        others = {name: revision for name, revision in known.items() if revision and revision not in own.values()}
        names = {name: known[name] for name in known if name in others | own} | own  # in the recorded order
        tags |= {EXPERIMENT_TAG: ", ".join(names), REVISION_TAG: ", ".join(names.values())}
        if names != known:
            tags[BASELINE_TAG] = experiments[-1].baseline
    if recorded.get(HELD_TAG) != "true":
        tags |= {COMMIT_TAG: commits[-1].revision, DIRTY_TAG: "false", HELD_TAG: "true"}
    return tags
