"""Where trials run: a clone of the project at the search's commit, so that the user's own files stay as they are.

The clone shares DVC's cache and the MLflow store with the project. Whatever state a kill leaves it in, the next trial
resets it. It lies in a folder that Git ignores, and is removed when the search has ended.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from facevae.config.schema import Params
from facevae.errors import UserError
from facevae.search.space import Overrides
from facevae.tracking import store
from facevae.tracking.repository import INPUTS, Commit, Repository

MARK = "FACEVAE_SEARCH"  # the variable by which the processes of a search are found after a kill: its folder
RAW_IMAGES = ("celeba", "folder", "parquet")  # sources that read data.root; the others draw or download
GRACE = (  # seconds to end after each signal; Python loses one that comes while it frees an object
    (signal.SIGINT, 15),
    (signal.SIGINT, 15),
    (signal.SIGINT, 15),
    (signal.SIGTERM, 15),
    (signal.SIGKILL, 60),
)


class Workplace:
    """A clone in which one trial runs at a time."""

    def __init__(self, root: Path, folder: Path, commit: str) -> None:
        self._root = root.resolve()
        self._folder = folder.resolve()
        self._commit = commit
        self.clone = self._folder / "clone"

    def require_inputs_of_commit(self) -> None:
        """Raise a `UserError` if code or params of the work tree are not those of the search's commit."""
        if not self._commit:
            raise UserError("a search starts from a commit, and there is none: run `git commit`")
        changed = _git(self._root, "diff", "--name-only", self._commit, "--", *INPUTS).splitlines()
        changed += _git(self._root, "ls-files", "--others", "--exclude-standard", "--", *INPUTS).splitlines()
        if changed:
            raise UserError(
                f"{', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}: not as in commit {self._commit[:8]}, "
                "from which all trials of this search start. Before a new search, commit or stash the change. To "
                "continue this one, return to that commit"
            )

    def prepare(self, params: Params) -> None:
        """Make the clone, or bring it back to the commit."""
        if not self.clone.is_dir():
            partial = self._folder / "clone.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _git(self._root, "clone", "--quiet", "--no-checkout", str(self._root), str(partial))
            for key in ("user.name", "user.email"):  # the project's own, which a clone does not take over
                if value := Repository(self._root).setting(key):
                    _git(partial, "config", key, value)
            partial.rename(self.clone)
        self._reset()
        self._share_cache()
        raw = self.clone / params.data.root
        if params.data.source in RAW_IMAGES and not any(raw.glob("[!.]*")):
            raise UserError(
                f"data.root: {params.data.root} holds no images in commit {self._commit[:8]}, where the trials run: "
                "commit params.yaml with an absolute path"
            )

    def _reset(self) -> None:
        """Undo what a trial left, also if it was killed."""
        git_folder = self.clone / ".git"
        for lock in [*git_folder.glob("*.lock"), *(git_folder / "refs").rglob("*.lock")]:
            lock.unlink()
        shutil.rmtree(self.clone / ".dvc" / "tmp", ignore_errors=True)
        for reference in _git(
            self.clone, "for-each-ref", "--format=%(refname)", "refs/exps/exec", "refs/exps/stash"
        ).split():
            _git(self.clone, "update-ref", "-d", reference)
        _git(self.clone, "checkout", "--quiet", "--force", "--detach", self._commit)
        _git(self.clone, "clean", "--quiet", "--force", "-d")

    def _share_cache(self) -> None:
        """Use the project's cache of DVC, and its other local settings."""
        from dvc.repo import Repo  # takes half a second

        with Repo(str(self._root)) as repo:
            cache, settings = repo.cache.local_cache_dir, repo.config.read("local")
        with Repo(str(self.clone)) as repo, repo.config.edit("local", validate=False) as config:
            config.update(settings)
            config.setdefault("cache", {})["dir"] = cache

    @contextmanager
    def experiment(self, name: str, overrides: Overrides) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a DVC experiment; at the end of the context, end it if it still runs. Its output goes to `log(name)`."""
        self._reset()
        changes = [f"--set-param={key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "exp", "run", "--name", name, *changes],
                cwd=self.clone,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its signals are ours to send
            )
        try:
            yield process
        finally:
            self.end_processes()
            process.wait()

    def log(self, name: str) -> Path:
        """The file with the output of a trial."""
        return self._folder / f"{name}.log"

    def _environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        return own | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")]),
            "MLFLOW_TRACKING_URI": store.tracking_uri(),
            MARK: str(self._folder),
        }

    def end_processes(self) -> None:
        """End the processes of a trial, also those of a search that was killed: first politely, then by force."""
        for number, seconds in GRACE:
            alive = [process for process in psutil.process_iter() if self._is_own(process)]
            for process in alive:
                with suppress(psutil.Error):  # it is gone, or another user's
                    process.send_signal(number)
            if not psutil.wait_procs(alive, seconds)[1]:
                return

    def _is_own(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it is gone, or another user's
            is_own = process.environ().get(MARK) == str(self._folder)
            return is_own and bool(process.status() != psutil.STATUS_ZOMBIE)
        return False

    def forget_training(self) -> None:
        """Remove the progress of a training that will not go on."""
        shutil.rmtree(self.clone / ".facevae" / "resume", ignore_errors=True)

    def finished(self, name: str) -> Commit | None:
        """The commit of a trial's DVC experiment, which becomes the project's too; None if it has none."""
        for commit in Repository(self.clone).experiments():
            if commit.experiment == name:
                reference = f"refs/exps/{commit.baseline[:2]}/{commit.baseline[2:]}/{name}"
                _git(
                    self._root, "fetch", "--quiet", "--no-write-fetch-head", str(self.clone), f"{reference}:{reference}"
                )
                return commit
        return None

    def remove(self) -> None:
        """Remove the clone. The trials' experiments and outputs are in the project."""
        self.end_processes()
        shutil.rmtree(self.clone, ignore_errors=True)


def _git(folder: Path, *arguments: str) -> str:
    """The output of git, or a `UserError` with its message."""
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"git {arguments[0]} failed in {folder}: {result.stderr.strip()}")
    return result.stdout.strip()
