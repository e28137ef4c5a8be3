"""Guided searches with fake trainings: their files, what is suggested and stopped, and how a search goes on."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, change_params, commit_all, init_repository, small_params, small_tree

from facevae.commands import project
from facevae.config.params import load_params
from facevae.errors import UserError
from facevae.search import guided, trials
from facevae.search.space import Overrides, load_search
from facevae.search.study import Study
from facevae.search.trials import Runner
from facevae.search.workplace import Workplace
from facevae.tracking import sync, trial_runs
from facevae.tracking.repository import Commit

SEARCH: dict[str, Any] = {
    "metric": "squared_error",
    "direction": "minimize",
    "num_trials": 8,
    "num_startup_trials": 3,
    "stop_after_epochs": 2,
    "seed": 1,
    "fixed": {"train.epochs": 4},
    "params": {
        "train.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
        "model.latent_dim": {"low": 2, "high": 40, "log": False},
        "model.channels": {"choices": [[8, 16], [4, 8], [16, 16]]},
    },
}


def write_search(folder: Path, **changes: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(SEARCH | changes))
    return path


def open_study(folder: Path, **changes: object) -> tuple[Study, Any]:
    search = load_search(write_search(folder, **changes), small_params())
    return Study(folder / "study.db", search, "0123abcd"), search


def loss_of(values: Mapping[str, Any], epoch: int) -> float:
    """A curve that falls, lower for rates near 0.02 and for larger latents."""
    return float(np.log10(values["train.learning_rate"] / 0.02) ** 2 + 10 / values["model.latent_dim"] + 1 / epoch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metirc": "ssim"}, "metirc: 'ssim' is an unknown key; allowed here: metric, direction"),
        ({"direction": "down"}, "direction: 'down' must be 'minimize' or 'maximize'"),
        ({"num_trials": 0}, "num_trials: 0 must be greater than 0"),
        ({"num_trials": "12"}, "num_trials: '12' must be a valid integer"),
        ({"params": {}}, "params: .* at least 1 item"),
        (
            {"params": {"train.learning_rat": SEARCH["params"]["train.learning_rate"]}},
            "params.train.learning_rat: params",
        ),
        ({"params": {"train": {"choices": [1, 2]}}}, "params.train: params.yaml has no such key"),
        ({"fixed": {"train.epoch": 1}}, "fixed.train.epoch: params.yaml has no such key; known: train.epochs"),
        ({"fixed": {"train.epochs": 0}}, r"tiny.yaml: params.yaml with `fixed` .*\n  train.epochs: 0 must be greater"),
        ({"params": {"train.learning_rate": {"low": 0.1, "high": 0.01, "log": True}}}, "low is 0.1, high is 0.01"),
        ({"params": {"train.learning_rate": {"low": 0, "high": 0.01, "log": True}}}, "low is 0: with log"),
        ({"params": {"train.learning_rate": {"low": "a", "high": 0.01, "log": True}}}, "learning_rate.low: 'a' must"),
        ({"params": {"train.learning_rate": {"low": 0.01, "high": 0.1}}}, "params.train.learning_rate.log: missing"),
        (
            {"params": {"train.learning_rate": {"low": 0.1, "high": 1.0, "log": True, "step": 1}}},
            "rate.step: 1 is an unk",
        ),
        ({"params": {"train.learning_rate": 0.1}}, "params.train.learning_rate: 0.1 must be a mapping|valid dict"),
        (
            {"params": {"train.learning_rate": {"low": -1.0, "high": 0.1, "log": False}}},
            "learning_rate=-1.0 has 1 invalid",
        ),
        ({"params": {"model.latent_dim": {"low": 2.0, "high": 40.0, "log": False}}}, "must be a valid integer"),
        ({"params": {"model.latent_dim": {"choices": [16]}}}, r"choices are \[16\]: give two or more"),
        (
            {"params": {"model.latent_dim": {"choices": [16, 16]}}},
            r"choices are \[16, 16\]: give two or more, each once",
        ),
        ({"params": {"train.epochs": {"choices": [2, 3]}}}, "train.epochs: both in fixed and in params"),
        (
            {"params": {"train.beta": {"choices": [0.5, 1.0]}}},
            "different train.beta cannot be compared. Set it to null",
        ),
    ],
)
def test_a_wrong_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_search(write_search(tmp_path, **changes), small_params())


def test_a_file_that_is_missing_or_has_a_bad_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other.yaml is not in"):
        load_search(tmp_path / "other.yaml", small_params())
    with pytest.raises(UserError, match="'my search', names the experiments"):
        load_search(tmp_path / "my search.yaml", small_params())


def test_the_committed_search_fits_the_committed_params() -> None:
    search = load_search(ROOT / "searches" / "demo.yaml", load_params(ROOT / "params.yaml"))
    assert search.file.metric in json.loads((ROOT / "metrics" / "evaluate.json").read_text())


def run_alone(study: Study, search: Any, number: int) -> list[Overrides]:
    """Run trials without stopping any."""
    found = []
    for _ in range(number):
        trial = study.next_trial()
        assert trial is not None
        values = search.suggest(trial)
        study.complete(trial, loss_of(values, 4), {epoch: loss_of(values, epoch) for epoch in range(1, 5)})
        found.append(values)
    return found


def test_values_are_within_their_ranges(tmp_path: Path) -> None:
    found = run_alone(*open_study(tmp_path), 8)
    for values in found:
        assert 0.001 <= values["train.learning_rate"] <= 0.1
        assert isinstance(values["model.latent_dim"], int)
        assert 2 <= values["model.latent_dim"] <= 40
        assert values["model.channels"] in SEARCH["params"]["model.channels"]["choices"]
    assert len({values["train.learning_rate"] for values in found}) == 8


def test_a_search_that_goes_on_suggests_the_same_values(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run_alone(*open_study(tmp_path / "whole"), 8)
    parts = run_alone(*open_study(tmp_path / "parts"), 3)
    study, search = open_study(tmp_path / "parts")
    interrupted = study.next_trial()
    assert interrupted is not None
    values = search.suggest(interrupted)
    study.falls_behind(interrupted, {1: 5.0}, 4)
    study, search = open_study(tmp_path / "parts")
    taken_up = study.next_trial()
    assert taken_up is not None
    assert (taken_up.number, search.suggest(taken_up)) == (3, values)
    parts += run_alone(study, search, 5)
    assert parts == whole
    assert study.next_trial() is None


def test_another_seed_gives_other_values(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, other = run_alone(*open_study(tmp_path), 1), run_alone(*open_study(tmp_path / "other", seed=2), 1)
    assert first != other


def test_a_changed_search_is_refused_but_may_have_more_trials(tmp_path: Path) -> None:
    open_study(tmp_path)
    open_study(tmp_path, num_trials=20)
    with pytest.raises(UserError, match="search tiny: direction, seed changed since the search began. Only num_trials"):
        open_study(tmp_path, seed=3, direction="maximize")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_trials_above_the_median_loss_are_stopped(direction: str, tmp_path: Path) -> None:
    study, search = open_study(tmp_path, direction=direction, num_trials=200, stop_after_epochs=2)
    generator = np.random.default_rng(0)
    complete: list[list[float]] = []
    num_stopped = 0
    for _ in range(40):
        trial = study.next_trial()
        assert trial is not None
        search.suggest(trial)
        curve = np.minimum.accumulate(generator.uniform(size=4)).tolist()
        reasons = [study.falls_behind(trial, dict(enumerate(curve[:epoch], 1)), 4) for epoch in range(1, 5)]
        behind = [
            len(complete) >= 3
            and 2 <= epoch < 4
            and curve[epoch - 1] > statistics.median(c[epoch - 1] for c in complete)
            for epoch in range(1, 5)
        ]
        first = behind.index(True) if any(behind) else 4
        assert [bool(reason) for reason in reasons[: first + 1]] == behind[: first + 1]
        if any(behind):
            num_stopped += 1
            median = statistics.median(c[first] for c in complete)
            assert f"after epoch {first + 1} its lowest validation loss is {curve[first]:.7g}" in reasons[first]
            assert f"{median:.7g}" in reasons[first]
            study.stop(trial)
        else:
            study.complete(trial, generator.uniform(), {})
            complete.append(curve)
    assert 5 < num_stopped < 35


def test_without_an_epoch_to_stop_after_no_trial_is_stopped(tmp_path: Path) -> None:
    study, search = open_study(tmp_path, stop_after_epochs=None)
    run_alone(study, search, 4)
    trial = study.next_trial()
    assert trial is not None
    search.suggest(trial)
    assert not study.falls_behind(trial, {1: 1e9, 2: 1e9, 3: 1e9}, 4)


class FakeWorkplace:
    """Trainings that end at once, or whose curve grows at each look until they are stopped."""

    def __init__(self, folder: Path, failing: tuple[int, ...] = ()) -> None:
        self.clone = folder
        self.failing = failing
        self.begun: list[str] = []
        self.committed: dict[str, Overrides] = {}
        self.forgotten = 0
        self.looks = 0
        self.values: Overrides = {}

    def prepare(self, _params: object) -> None: ...

    def finished(self, name: str) -> Commit | None:
        return Commit(name, 0, name) if name in self.committed else None

    @contextmanager
    def experiment(self, name: str, overrides: Overrides) -> Iterator[object]:
        self.begun.append(name)
        self.values, self.looks = overrides, 0
        self.log(name).write_text("a line\nerror: the training diverged\nERROR: failed to reproduce\n")
        yield SimpleNamespace(poll=self.poll, wait=lambda *_: None)
        if self.looks > 4 and len(self.begun) - 1 not in self.failing:
            self.committed[name] = overrides

    def poll(self) -> int | None:
        self.looks += 1
        return None if self.looks <= 4 else 0

    def curve(self, *_: object) -> dict[int, float]:
        return {epoch: loss_of(self.values, epoch) for epoch in range(1, self.looks + 1)}

    def result(self, _root: Path, commit: Commit) -> object:
        values = self.committed[commit.revision]
        points = [("validation_loss", epoch, loss_of(values, epoch)) for epoch in range(1, 5)]
        return SimpleNamespace(outputs=SimpleNamespace(points=[*points, ("squared_error", 0, loss_of(values, 4))]))

    def forget_training(self) -> None:
        self.forgotten += 1

    def log(self, name: str) -> Path:
        return self.clone / f"{name}.log"


class FakeRun:
    """A runner on fake trainings, what it reports, and the tags that runs get."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, failing: tuple[int, ...] = (), **changes: object
    ) -> None:
        self.study, self.search = open_study(folder, **changes)
        self.workplace = FakeWorkplace(folder, failing)
        self.lines: list[str] = []
        self.tags: dict[str, Mapping[str, str]] = {}
        runner: Any = Runner
        self.runner = runner(self.search, self.study, self.workplace, folder, self.lines.append)
        patch.setattr(trials, "_create_experiment", lambda _: None)
        patch.setattr(trial_runs, "read_curve", self.workplace.curve)
        patch.setattr(trial_runs, "mark_ended", lambda name, _, tags: self.tags.update({name: tags}))
        patch.setattr(sync, "result_of", self.workplace.result)
        patch.setattr(sync, "record", lambda *_: None)


def test_the_runner_stops_bad_trials_and_finds_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, monkeypatch, num_trials=20)
    run.runner.run()
    counts = run.study.count()
    assert counts["complete"] + counts["stopped"] == 20
    assert counts["stopped"] == run.workplace.forgotten > 2
    stopped = [name for name, tags in run.tags.items() if "facevae.search_stopped" in tags]
    assert len(stopped) == counts["stopped"]
    best = run.study.best()
    assert best is not None
    losses = {name: loss_of(values, 4) for name, values in run.workplace.committed.items()}
    assert run.study.name_of(best) == min(losses, key=losses.__getitem__)
    assert all(values["train.epochs"] == 4 for values in run.workplace.committed.values())


def test_equal_trials_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, monkeypatch, num_trials=9, params={"train.learning_rate": {"choices": [0.01, 0.02]}})
    monkeypatch.setattr(sys.modules[__name__], "loss_of", lambda values, epoch: values["train.learning_rate"] / epoch)
    run.runner.run()
    assert len(run.workplace.begun) == 2
    assert len(run.study.trials) == 9
    assert sum("so it is not run again" in line for line in run.lines) == 7


def test_a_failed_trial_is_reported_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, monkeypatch, failing=(1,), num_trials=3)
    run.runner.run()
    assert run.study.count()["failed"] == 1
    assert any(line.startswith("tiny-1: failed: error: the training diverged (all of it: ") for line in run.lines)


def test_a_search_whose_trials_keep_failing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, monkeypatch, failing=(1, 2, 3, 4), num_trials=8)
    with pytest.raises(UserError, match="3 trials in a row failed, the last one with: error: the training diverged"):
        run.runner.run()
    assert len(run.study.trials) == 4


def test_a_trial_that_finished_before_a_kill_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, monkeypatch, num_trials=1)
    trial = run.study.next_trial()
    assert trial is not None
    run.workplace.committed["tiny-0"] = run.search.suggest(trial)
    run.runner.run()
    assert run.workplace.begun == []
    assert run.study.count()["complete"] == 1


def test_a_search_goes_on_without_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise UserError("MLflow is down")

    run = FakeRun(tmp_path, monkeypatch, num_trials=5)
    for module, name in ((trial_runs, "read_curve"), (sync, "record"), (trials, "_create_experiment")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(run.workplace, "poll", lambda: setattr(run.workplace, "looks", 5))
    run.runner.run()
    assert run.study.count()["complete"] == 5
    assert "tiny-4 is not watched, so it cannot be stopped: MLflow is down" in caplog.text


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a committed params.yaml and a search."""
    folder = tmp_path / "repository"
    (folder / ".dvc").mkdir(parents=True)
    (folder / "metrics").mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(small_tree()))
    (folder / "metrics" / "evaluate.json").write_text(json.dumps({"squared_error": 1.0, "ssim": 0.5}))
    (folder / ".gitignore").write_text(".facevae\n")
    init_repository(folder)
    write_search(folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def test_changed_code_or_params_are_refused(repository: Path) -> None:
    change_params(repository, "train", "epochs", 9)
    (repository / "src").mkdir()
    (repository / "src" / "new.py").touch()
    with pytest.raises(UserError, match=r"^params.yaml, src/new.py: not as in commit .* commit or stash the change"):
        guided.search(Path(), Path("tiny.yaml"), print)
    assert not (repository / ".facevae" / "search" / "tiny" / "study.db").exists()


def test_notes_and_results_may_have_changed(repository: Path) -> None:
    (repository / "notes.txt").touch()
    (repository / "metrics" / "evaluate.json").write_text("{}")
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    Workplace(repository, repository / ".facevae", head).require_inputs_of_commit()
    commit_all(repository, "Notes")
    Workplace(repository, repository / ".facevae", head).require_inputs_of_commit()


def test_an_unknown_metric_is_refused(repository: Path) -> None:
    write_search(repository, metric="squared_eror")
    with pytest.raises(UserError, match="metric: 'squared_eror' is unknown. Known: squared_error, ssim"):
        guided.search(Path(), Path("tiny.yaml"), print)


def test_experiments_of_another_search_are_not_overwritten(repository: Path) -> None:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    for name in ("tiny-0", "tiny-wide", "other-3"):
        subprocess.run(["git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", head], check=True)
    with pytest.raises(UserError, match="DVC experiments tiny-0 exist, .* `dvc exp remove tiny-0`"):
        guided.search(Path(), Path("tiny.yaml"), print)


def test_a_search_runs_once_at_a_time(repository: Path) -> None:
    folder = repository / ".facevae" / "search" / "tiny"
    folder.mkdir(parents=True)
    with guided._alone("tiny", folder), pytest.raises(UserError, match="search tiny already runs in another process"):
        guided.search(Path(), Path("tiny.yaml"), print)


def test_without_optuna_the_command_says_how_to_install_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("optuna", "facevae.search"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[search\]'"):
        project.search(repository / "tiny.yaml")
