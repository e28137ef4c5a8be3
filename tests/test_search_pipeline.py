"""A guided search of a tiny pipeline by the real DVC, MLflow and Optuna: killed, continued, and a trial stopped."""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from conftest import clean_environment, dvc

from facevae.tracking import runs, store
from facevae.tracking.sync import sync

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and its dependencies warn about each other

EPOCHS = 60  # so many that a kill or a stop comes before the last
SEARCH: dict[str, Any] = {
    "metric": "squared_error",
    "direction": "maximize",  # towards lower rates, so that the third trial falls behind
    "num_trials": 3,
    "num_startup_trials": 2,
    "stop_after_epochs": 1,
    "seed": 23,  # the first rates are 0.0088 and 0.0039
    "fixed": {"train.epochs": EPOCHS},
    "params": {"train.learning_rate": {"low": 0.00001, "high": 0.02, "log": True}},
}
SECONDS = 300


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of the project that Git does not ignore, and what is checked out."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=folder, text=True
    )
    files = {name: (folder / name).read_bytes() for name in listed.split("\0") if name}
    return files | {"HEAD": (folder / ".git" / "HEAD").read_bytes()}


def start(folder: Path) -> "subprocess.Popen[str]":
    command = ["facevae", "search", "tiny.yaml"]
    return subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def trial_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, "Run"]:
    """The runs of the search by the number of their trial."""
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    found = runs.find_runs(store.connect(), "tags.`facevae.search` = 'tiny'")
    numbers = Counter(run.data.tags["facevae.search_trial"] for run in found)
    assert max(numbers.values(), default=1) == 1
    return {run.data.tags["facevae.search_trial"]: run for run in found}


def test_a_killed_search_goes_on_and_stops_what_falls_behind(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    (copy / "notes.txt").write_text("not committed")
    (copy / "README.md").write_text("changed")
    before = files_of(copy)
    progress = copy / ".facevae" / "search" / "tiny" / "clone" / ".facevae" / "resume"

    killed = start(copy)
    wait_until(lambda: progress.is_dir() and any(progress.iterdir()))
    for process in [*psutil.Process(killed.pid).children(recursive=True), killed]:
        process.kill()  # as when the machine goes down
    killed.communicate()
    orphaning = start(copy)
    log = copy / ".facevae" / "search" / "tiny" / "tiny-0.log"
    wait_until(lambda: "training continues after epoch" in log.read_text())
    orphaning.kill()  # the trial goes on without its search
    orphaning.communicate()
    interrupted = start(copy)
    wait_until(lambda: log.read_text().count("Reproducing experiment 'tiny-0'") == 3)
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate()
    assert "stopped: the same command continues the search" in said
    assert interrupted.returncode == 130
    assert not [process for process in psutil.process_iter(["cwd"]) if "search/tiny" in str(process.info["cwd"])]
    assert files_of(copy) == before

    finished = start(copy)
    said, _ = finished.communicate()
    assert finished.returncode == 0, said
    assert "tiny-2: stopped: after epoch " in said
    best = re.search(r"best of 3 trials \(2 complete, 1 stopped\): (tiny-[01]), squared_error [\d.]+", said)
    assert best is not None, said
    assert files_of(copy) == before
    assert not (copy / ".facevae" / "search" / "tiny" / "clone").exists()

    assert "Running stage 'prepare'" not in log.read_text()  # the set comes from the project's cache

    found = trial_runs(copy, monkeypatch)
    assert {number: run.info.status for number, run in found.items()} == {
        "0": "FINISHED",
        "1": "FINISHED",
        "2": "KILLED",
    }
    assert found["2"].data.tags["facevae.search_stopped"].startswith("after epoch ")
    points = store.connect().get_metric_history(found["0"].info.run_id, "validation_loss")
    assert [point.step for point in points] == list(range(1, EPOCHS + 1))
    shown = dvc(copy, "exp", "show", "--csv")
    assert [name for name in ("tiny-0", "tiny-1", "tiny-2") if name in shown] == ["tiny-0", "tiny-1"]
    lines: list[str] = []
    sync(Path(), [], lines.append)
    assert not [line for line in lines if "tiny" in line], lines

    again = start(copy)
    said, _ = again.communicate()
    assert again.returncode == 0
    assert best[0] in said
    subprocess.run(["git", "checkout", "README.md"], cwd=copy, check=True)
    dvc(copy, "exp", "apply", best[1])
    assert "Data and pipelines are up to date." in dvc(copy, "status")
