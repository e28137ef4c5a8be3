"""A clone of the last commit, in which the pipeline can be run, stopped and compared file by file."""

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
COMMITTED = ("metrics", "plots", "dvc.lock")
HELD_BY_DVC = ("models", "data/prepared")  # dvc.lock has their digests
SMALL: dict[str, dict[str, Any]] = {
    "data": {"num_images": 200, "image_size": 16},
    "model": {"channels": [8, 16], "strides": [2, 2], "latent_dim": 4},
    "train": {"epochs": 8, "num_threads": 1, "kl_warmup_epochs": 1.0, "learning_rate_warmup_steps": 10},
    "classifier": {"epochs": 2},
    "evaluate": {"num_samples": 16, "num_edited_images": 4, "strengths": [1.0]},
    "figures": {"num_samples": 8, "num_interpolations": 2, "interpolation_steps": 5},
}


class Trial:
    """A clone with some params changed, which runs the pipeline up to the stage `target`, or the whole of it.

    Attributes
    ----------
    folder
        Its root.
    log
        The output of the last command.
    """

    def __init__(self, folder: Path, changes: Mapping[str, Mapping[str, Any]], target: str | None = None) -> None:
        self.folder = folder.resolve()
        self._targets = [target] if target else []
        if folder.exists():
            sys.exit(f"{folder} already exists: name a new folder")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in changes.items():
            tree[section].update(values)
        if changes:
            path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        self.log = self.folder / ".facevae" / "trial.log"
        self.log.parent.mkdir(exist_ok=True)

    def start(self, *prefix: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start `dvc repro` in its own process group; `prefix` is a command that runs it.

        The run cache is off, since it would bring back the results of an earlier round. Files that DVC was writing when
        it was killed are repaired first, as `make repro` does.
        """
        subprocess.run([Path(sys.executable).with_name("facevae"), "mend"], cwd=self.folder, check=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "PYTHON"))}
        variables = {**own, "PATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
        command = [*prefix, str(Path(sys.executable).with_name("dvc")), "repro", "--no-run-cache", *self._targets]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=variables, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, *prefix: str, environment: dict[str, str] | None = None) -> None:
        """Run `dvc repro` to its end. Exit if it fails."""
        if self.start(*prefix, environment=environment).wait() != 0:
            sys.exit(f"`dvc repro` failed:\n{self.log.read_text(errors='replace')}")

    def start_over(self) -> None:
        """Remove everything that the pipeline has made, except for MLflow's runs."""
        for name in (*COMMITTED, *HELD_BY_DVC, ".dvc/cache", ".dvc/tmp"):
            subprocess.run(["rm", "-rf", name], cwd=self.folder, check=True)
        subprocess.run(["git", "checkout", "--quiet", "--", *COMMITTED, "models"], cwd=self.folder, check=True)

    def move(self, folder: Path) -> None:
        """Move the clone to a new folder. MLflow's store is removed, since it holds absolute paths."""
        if self.folder != folder.resolve():
            for name in ("mlflow.db", "mlartifacts"):
                subprocess.run(["rm", "-rf", name], cwd=self.folder, check=True)
            self.log = folder.resolve() / self.log.relative_to(self.folder)
            self.folder = self.folder.rename(folder.resolve())

    def results(self, *names: str) -> dict[str, str]:
        """The digest of each file under these names, by path; by default of everything that the pipeline makes."""
        named = [self.folder / name for name in names or (*COMMITTED, *HELD_BY_DVC)]
        paths = [path for start in named for path in ([start] if start.is_file() else start.rglob("*"))]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.is_file()
        }

    def check(self, expected: dict[str, str], *names: str) -> None:
        """Exit if a result differs from the expected one, or if a temporary file or a running MLflow run is left."""
        found = self.results(*names)
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        patterns = ("**/*.partial", "data/prepared.old", ".facevae/resume/*")
        left = [path for pattern in patterns for path in self.folder.glob(pattern)]
        statuses = self._run_statuses()
        if wrong or left or "RUNNING" in statuses:
            said = self.log.read_text(errors="replace")
            sys.exit(f"differing: {wrong}; left over: {left}; MLflow's runs: {dict(statuses)}\n{said}")

    def _run_statuses(self) -> Counter[str]:
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return Counter(status for (status,) in database.execute("SELECT status FROM runs"))
