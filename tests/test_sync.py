"""DVC's experiments and MLflow's runs, kept in step: the real DVC, its queue and the real MLflow, in clones."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import commit_all, dvc
from PIL import Image

from facevae.errors import UserError
from facevae.tracking import store
from facevae.tracking.sync import sync
from facevae.tracking.where import where

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and what it stands on warn of each other

FIGURES = ["arithmetic", "interpolation", "latent_map", "losses", "reconstructions", "samples"]
NOTHING = "nothing to do"


@pytest.fixture
def clone(experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the clone with the experiments, which is the working directory."""
    folder = shutil.copytree(experiments, tmp_path / "clone")
    enter(folder, monkeypatch)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


def runs() -> dict[str, "Run"]:
    """All runs by their names, which must differ."""
    client = store.connect()
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert max(Counter(run.info.run_name for run in found).values()) == 1
    return {run.info.run_name: run for run in found}


def synchronize(*revisions: str) -> str:
    lines: list[str] = []
    sync(Path(), revisions, lines.append)
    return "\n".join(lines)


def experiment_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """What `dvc exp show --json` has of each experiment."""
    (baseline,) = [
        branch["experiments"] for branch in json.loads(dvc(folder, "exp", "show", "--json")) if branch["experiments"]
    ]
    metrics = {}
    for experiment in baseline:
        (revision,) = experiment["revs"]
        files = revision["data"]["metrics"].values()
        metrics[experiment["name"]] = {key: value for file in files for key, value in file["data"].items()}
    return metrics


def assert_whole(run: "Run", folder: Path) -> None:
    """The run has every epoch's points once, the metrics that DVC has, its figures, its data and its model."""
    assert run.info.status == "FINISHED"
    expected = experiment_metrics(folder)[run.info.run_name]
    client = store.connect()
    logged = {key for key in run.data.metrics if not key.startswith("system/")}
    for key in logged:
        points = client.get_metric_history(run.info.run_id, key)
        if key in expected:
            assert [(point.step, point.value) for point in points] == [(0, expected[key])]
        else:
            assert sorted(point.step for point in points) == [1, 2], key
    assert expected.keys() | {"train_loss", "validation_loss", "learning_rate"} <= logged
    for name in FIGURES:
        with Image.open(client.download_artifacts(run.info.run_id, f"{name}.png")) as image:
            image.load()
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest.endswith(".dir")
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1


def test_the_queue_leaves_one_whole_run_for_each_experiment(
    experiments: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    enter(experiments, monkeypatch)
    found = runs()
    assert set(found) == {f"beta-{i}" for i in range(1, pytestconfig.getoption("--num-experiments") + 1)}
    for run in found.values():
        assert_whole(run, experiments)
        assert run.data.tags["facevae.dvc_experiment"] == run.info.run_name
    assert b".dvc/tmp" not in (experiments / "mlflow.db").read_bytes()
    assert not [path for path in (experiments / "mlartifacts").rglob("*") if ".dvc" in path.parts]


def test_sync_finds_the_commits_of_experiments_and_then_has_nothing_to_do(clone: Path) -> None:
    before = set(runs())
    assert "mended    beta-1: 2 tags" in synchronize()
    assert NOTHING in synchronize()
    found = runs()
    assert len(found) == len(before) + 1  # the work tree's own state
    revision = subprocess.check_output(["git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/beta-1"])
    assert found["beta-1"].data.tags["mlflow.source.git.commit"] == revision.decode().strip()
    assert found["beta-1"].data.tags["facevae.git_dirty"] == "false"
    assert clone.is_dir()


def test_an_experiment_from_the_run_cache_gives_its_run_the_new_name(clone: Path) -> None:
    before = runs()
    assert "Running stage" not in dvc(clone, "exp", "run", "--name", "again", "--set-param", "train.beta=1.5")
    synchronize()
    after = runs()
    assert set(after) == set(before) - {"beta-1"} | {"again"}
    assert after["again"].info.run_id == before["beta-1"].info.run_id
    assert after["again"].data.tags["facevae.dvc_experiment"] == "beta-1, again"
    assert NOTHING in synchronize()


def test_a_renamed_experiment_renames_its_run(clone: Path) -> None:
    before = runs()
    dvc(clone, "exp", "rename", "beta-2", "gamma")
    assert "mended    gamma: name, which was beta-2" in synchronize()
    after = runs()
    assert after["gamma"].info.run_id == before["beta-2"].info.run_id
    assert after["gamma"].data.tags["facevae.dvc_experiment"] == "gamma"
    assert NOTHING in synchronize()


def test_a_lost_database_is_made_again(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    shutil.rmtree(clone / "mlartifacts", ignore_errors=True)
    assert "made      beta-1: " in synchronize()
    for name, run in runs().items():
        if name.startswith("beta"):
            assert_whole(run, clone)
        assert run.info.status == "FINISHED"
    assert NOTHING in synchronize()


def test_figures_that_were_lost_are_stored_again(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    synchronize()
    client, run = store.connect(), runs()["beta-1"]
    path = clone / "mlartifacts" / run.info.run_id / "artifacts" / "samples.png"
    path.unlink()
    assert "mended    beta-1: 1 figures" in synchronize()
    assert path.is_file()
    assert len(client.list_artifacts(run.info.run_id)) == len(FIGURES)


def test_commits_get_their_run_when_asked_for(clone: Path) -> None:
    dvc(clone, "exp", "remove", "--all-commits")
    dvc(clone, "exp", "run", "--name", "taken-over", "--set-param", "figures.num_samples=3")
    commit_all(clone, "Three samples")
    dvc(clone, "exp", "remove", "taken-over")
    (clone / "mlflow.db").unlink()
    assert "1 state(s)" in synchronize()
    assert "3 state(s)" not in synchronize("HEAD", "HEAD~1")
    assert len(runs()) == 2
    with pytest.raises(UserError, match="--rev: 'nonsense' is no commit of this repository"):
        synchronize("nonsense")


def test_a_state_that_is_not_reproduced_is_left_out(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("beta: 1.0", "beta: 7.0"))
    assert "left out  the work tree: to be reproduced: train (train)" in synchronize()
    assert {name[:4] for name in runs()} == {"beta"}


def test_each_experiment_of_mlflow_has_its_own_runs(clone: Path) -> None:
    dvc(clone, "exp", "remove", "--all-commits")
    (clone / "mlflow.db").unlink()
    synchronize()
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("experiment: tests", "experiment: others"))
    assert "2 state(s)" in synchronize("HEAD")
    client = store.connect()
    for name in ("tests", "others"):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == 1


def test_the_run_of_a_dead_process_is_closed(clone: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from facevae.tracking import open_run
with open_run("train") as run:
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("beta: 1.0", "beta: 7.0"))
    subprocess.run([sys.executable, "-c", script], check=False)
    assert "RUNNING" in {run.info.status for run in runs().values()}
    assert "closed    avatars-" in synchronize()
    assert {run.info.status for run in runs().values()} == {"FINISHED", "KILLED"}
    assert NOTHING in synchronize()


def restore_commands(text: str) -> list[list[str]]:
    lines = [line[13:] for line in text.splitlines()]
    start = next(i for i, line in enumerate(text.splitlines()) if line.startswith("restore"))
    return [line.split("#")[0].split() for line in lines[start:]]


@pytest.mark.parametrize("holder", ["experiment", "commit"])
def test_where_tells_how_to_restore_the_weights(clone: Path, holder: str) -> None:
    weights = clone / "models" / "vae.safetensors"
    if holder == "commit":
        synchronize()
        (name,) = [name for name in runs() if name.startswith("avatars")]
        expected = weights.read_bytes()
        dvc(clone, "exp", "apply", "beta-1")
    else:
        name = "beta-2"
        dvc(clone, "exp", "apply", name)
        expected = weights.read_bytes()
        dvc(clone, "exp", "apply", "beta-1")
    assert weights.read_bytes() != expected
    subprocess.run(["git", "stash", "--quiet"], check=True)
    text = where(Path(), name)
    assert yaml.safe_load((clone / "dvc.lock").read_text())["stages"]["prepare"]["outs"][0]["md5"] in text
    for program, *arguments in restore_commands(text):
        if program == "dvc":
            dvc(clone, *arguments)
        else:
            subprocess.run([program, *arguments], check=True)
    assert weights.read_bytes() == expected
    assert runs()[name].info.run_id in text


def test_where_says_what_the_cache_lacks(clone: Path) -> None:
    shutil.rmtree(clone / ".dvc" / "cache" / "files")
    assert "dvc pull    # the cache here lacks data or weights" in where(Path(), "beta-1")


def test_where_finds_a_run_by_its_id_and_by_its_fingerprint(clone: Path) -> None:
    run = runs()["beta-1"]
    expected = where(Path(), "beta-1")
    assert where(Path(), run.info.run_id) == expected
    assert where(Path(), run.data.tags[store.FINGERPRINT_TAG][:10]) == expected
    assert clone.is_dir()


def test_where_tells_what_it_cannot_find(clone: Path) -> None:
    with pytest.raises(UserError, match="nobody: MLflow at sqlite:.* has no such run"):
        where(Path(), "nobody")
    dvc(clone, "exp", "remove", "beta-1")
    with pytest.raises(UserError, match="beta-1: no commit, DVC experiment.*dvc exp pull REMOTE beta-1"):
        where(Path(), "beta-1")
