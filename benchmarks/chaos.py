"""Kill the pipeline at random moments, over and over, and see that it ends in the bytes of an undisturbed one.

It works on a fresh clone of this checkout's last commit, with small params. DVC's whole process group gets SIGKILL,
SIGTERM or SIGINT; then `dvc repro` is called again, and perhaps killed again, until it ends by itself.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RESULTS = ("dvc.lock", "metrics", "plots", "models", "data/prepared")
PATIENCE = 60  # seconds that a process gets to end after a signal that it may answer
SMALL = {
    "data": {"num_images": 400, "image_size": 32},
    "model": {"channels": [16, 32], "strides": [2, 2], "latent_dim": 8},
    "train": {"epochs": 8, "num_threads": 1, "kl_warmup_epochs": 1.0},
    "classifier": {"epochs": 2},
    "evaluate": {"num_samples": 50, "num_bootstraps": 50, "strengths": [1.0]},
}


@dataclass(frozen=True)
class Kill:
    """One attempt that was killed: where it was, and what of the stage's work was not on disk yet."""

    signal: str
    stage: str
    lost_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to put the clone")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-committed", action="store_true", help="with the committed params instead of small ones")
    parser.add_argument("--stage", help="kill while this stage runs only")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = make_clone(arguments.folder, small=not arguments.as_committed)
    pipeline = Pipeline(folder, arguments.stage)
    duration = pipeline.run_whole(force=False)
    expected = pipeline.results()
    kills: list[Kill] = []
    num_whole = 0
    force = True
    while len(kills) < arguments.kills:
        kill = pipeline.run_and_kill(chance, duration, force=force)
        force = kill is None
        if kill:
            kills.append(kill)
        else:
            num_whole += 1
            pipeline.check(expected)
    pipeline.run_whole(force=False)
    pipeline.check(expected)
    report(kills, num_whole + 1)


def make_clone(folder: Path, *, small: bool) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    if small:
        path = folder / "params.yaml"
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in SMALL.items():
            tree[section].update(values)
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder


class Pipeline:
    """A clone whose pipeline is run and killed."""

    def __init__(self, folder: Path, stage: str | None) -> None:
        self.folder = folder
        self.only = stage
        self.log = folder / ".facevae" / "chaos.log"
        self.log.parent.mkdir(exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run_whole(self, *, force: bool) -> float:
        """Run undisturbed; how many seconds it took."""
        start = time.monotonic()
        process = self._start(force)
        if process.wait() != 0:
            sys.exit(f"an undisturbed `dvc repro` failed:\n{self.log.read_text()}")
        return time.monotonic() - start

    def run_and_kill(self, chance: random.Random, duration: float, *, force: bool) -> Kill | None:
        """Run, and kill at a random moment; None where the run ended before that."""
        deadline = time.monotonic() + chance.uniform(0, duration)
        number = chance.choice(SIGNALS)
        process = self._start(force)
        stage, since = "", time.monotonic()
        while process.poll() is None:
            time.sleep(0.01)
            current = self._stage()
            if current != stage:
                stage, since = current, time.monotonic()
                if stage == self.only:
                    deadline = time.monotonic() + chance.uniform(0, duration)
            if time.monotonic() > deadline and self.only in (None, stage):
                saved = [path.stat().st_mtime for path in (self.folder / ".facevae/resume").glob("[!.]*")]
                lost = time.monotonic() - since
                if stage == "train" and saved:
                    lost = min(lost, time.time() - max(saved))
                os.killpg(process.pid, number)
                self._wait(process)
                return Kill(number.name, stage or "DVC itself", lost)
        if process.returncode != 0:
            sys.exit(f"`dvc repro` failed after a kill:\n{self.log.read_text()}")
        return None

    def results(self) -> dict[str, str]:
        """The digest of every file that the pipeline makes."""
        files = [path for name in RESULTS for path in [self.folder / name, *(self.folder / name).rglob("*")]]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.is_file()
        }

    def check(self, expected: dict[str, str]) -> None:
        """Stop the benchmark where anything differs, or is left over, after a run that ended well."""
        found = self.results()
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        left = [*self.folder.rglob("*.partial"), *(self.folder / ".facevae/resume").glob("*")]
        statuses = self._run_statuses()
        if wrong or left or "RUNNING" in statuses:
            sys.exit(f"differing: {wrong}; left over: {left}; runs: {statuses}\n{self.log.read_text()}")

    def _run_statuses(self) -> Counter[str]:
        import sqlite3

        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return Counter(status for (status,) in database.execute("SELECT status FROM runs"))

    def _start(self, force: bool) -> "subprocess.Popen[bytes]":
        command = ["dvc", "repro", *(["--force"] if force else [])]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _stage(self) -> str:
        """The stage that runs by what DVC has said, or nothing where none has begun."""
        running = [line for line in self.log.read_text(errors="replace").splitlines() if "Running stage '" in line]
        return running[-1].split("'")[1] if running else ""

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the whole group, since a stage may outlive DVC; kill what does not end."""
        process.wait()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


def report(kills: list[Kill], num_whole: int) -> None:
    table = pd.DataFrame(kills)
    print(pd.crosstab(table["stage"], table["signal"], margins=True).to_string())
    print(table.groupby("stage")["lost_seconds"].agg(["mean", "max"]).round(2).to_string())
    print(f"{len(kills)} kills; {num_whole} runs ended by themselves, each in the bytes of the undisturbed one")


if __name__ == "__main__":
    main()
