"""DVC's experiments and MLflow's runs stay in step: the real DVC, its queue and the real MLflow, in clones."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import change_params, commit_all, dvc
from PIL import Image

from facevae.config.paths import EDITOR
from facevae.errors import UserError
from facevae.figures import gallery
from facevae.tracking import runs, store
from facevae.tracking.stage_run import open_run
from facevae.tracking.sync import sync
from facevae.tracking.where import where

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow and its dependencies warn about each other
    pytest.mark.xdist_group("experiments"),
]

FIGURES = sorted(gallery.FIGURES)
NOTHING = "nothing to do"


@pytest.fixture
def clone(experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the clone with the experiments."""
    folder = shutil.copytree(experiments, tmp_path / "clone")
    enter(folder, monkeypatch)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


def revision_of(experiment: str) -> str:
    """The commit of an experiment of the clone in the working directory."""
    command = ["git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{experiment}"]
    return subprocess.check_output(command, text=True).strip()


def all_runs() -> dict[str, "Run"]:
    """All runs by name, which must be unique."""
    client = store.connect()
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert max(Counter(run.info.run_name for run in found).values()) == 1
    return {run.info.run_name: run for run in found}


def synchronize(*revisions: str) -> str:
    lines: list[str] = []
    sync(Path(), revisions, lines.append)
    return "\n".join(lines)


def experiment_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of each experiment in `dvc exp show --json`."""
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
    """Check that a run has each epoch's points once, DVC's metrics, its figures, its data and its model."""
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
    page = Path(client.download_artifacts(run.info.run_id, EDITOR.name)).read_bytes()
    assert hashlib.md5(page).hexdigest() == run.data.tags["mlflow.facevae.editor"]
    files = [Path(file.path) for file in client.list_artifacts(run.info.run_id, "images")]
    pictures = Counter((*file.name.split("+")[:3], file.suffix) for file in files)
    steps = [(name, "step", str(epoch)) for name in ("reconstructions", "samples") for epoch in (1, 2)]
    assert pictures == {(*step, suffix): 1 for step in steps for suffix in (".png", ".webp")}
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest.endswith(".dir")
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1


def test_each_queued_experiment_has_one_complete_run(
    experiments: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    enter(experiments, monkeypatch)
    found = all_runs()
    assert set(found) == {f"beta-{i}" for i in range(1, pytestconfig.getoption("--num-experiments") + 1)}
    for run in found.values():
        assert_whole(run, experiments)
        assert run.data.tags["facevae.dvc_experiment"] == run.info.run_name
    assert b".dvc/tmp" not in (experiments / "mlflow.db").read_bytes()
    assert not [path for path in (experiments / "mlartifacts").rglob("*") if ".dvc" in path.parts]


def test_sync_adds_the_commits_of_experiments_once(clone: Path) -> None:
    before = set(all_runs())
    assert "updated   beta-1: 4 tags" in synchronize()
    assert NOTHING in synchronize()
    found = all_runs()
    assert len(found) == len(before) + 1  # and the work tree's
    assert found["beta-1"].data.tags["mlflow.source.git.commit"] == revision_of("beta-1")
    assert found["beta-1"].data.tags["facevae.git_dirty"] == "false"
    assert clone.is_dir()


def test_an_experiment_from_the_run_cache_renames_its_run(clone: Path) -> None:
    before = all_runs()
    assert "Running stage" not in dvc(clone, "exp", "run", "--name", "again", "--set-param", "train.beta=1.5")
    synchronize()
    after = all_runs()
    assert set(after) == set(before) - {"beta-1"} | {"again"}
    assert after["again"].info.run_id == before["beta-1"].info.run_id
    assert after["again"].data.tags["facevae.dvc_experiment"] == "beta-1, again"
    assert NOTHING in synchronize()


def test_a_renamed_experiment_renames_its_run(clone: Path) -> None:
    before = all_runs()
    dvc(clone, "exp", "rename", "beta-2", "gamma")
    assert "updated   gamma: name (was beta-2)" in synchronize()
    after = all_runs()
    assert after["gamma"].info.run_id == before["beta-2"].info.run_id
    assert after["gamma"].data.tags["facevae.dvc_experiment"] == "gamma"
    assert NOTHING in synchronize()


def test_names_from_two_clones_are_both_kept(
    clone: Path, experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(experiments, tmp_path / "other")
    dvc(other, "exp", "remove", "--all-commits")
    dvc(other, "exp", "run", "--name", "mine", "--set-param", "train.beta=1.5")
    synchronize()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone}/mlflow.db")
    monkeypatch.chdir(other)
    assert "updated   mine: name (was beta-1)" in synchronize()
    for folder in (clone, other):
        monkeypatch.chdir(folder)
        assert NOTHING in synchronize()
    assert all_runs()["mine"].data.tags["facevae.dvc_experiment"] == "beta-1, mine"


def test_a_lost_database_is_restored(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    shutil.rmtree(clone / "mlartifacts", ignore_errors=True)
    assert "created   beta-1: " in synchronize()
    for name, run in all_runs().items():
        if name.startswith("beta"):
            assert_whole(run, clone)
        assert run.info.status == "FINISHED"
    assert NOTHING in synchronize()


def test_lost_figures_are_restored(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    synchronize()
    client, run = store.connect(), all_runs()["beta-1"]
    path = clone / "mlartifacts" / run.info.run_id / "artifacts" / "samples.png"
    path.unlink()
    assert "updated   beta-1: 1 figures" in synchronize()
    assert path.is_file()
    stored = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert stored == {"images", "editor.html", gallery.WALK, *(f"{name}.png" for name in FIGURES)}


def test_lost_editor_is_restored_if_this_machine_has_it(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    synchronize()
    run = all_runs()["beta-1"]
    path = clone / "mlartifacts" / run.info.run_id / "artifacts" / EDITOR.name
    content = path.read_bytes()
    path.unlink()
    lock = yaml.safe_load(subprocess.check_output(["git", "show", f"{revision_of('beta-1')}:dvc.lock"], cwd=clone))
    digest = lock["stages"]["editor"]["outs"][0]["md5"]
    cached = clone / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    hidden = cached.rename(cached.with_suffix(".hidden"))
    assert NOTHING in synchronize()
    hidden.rename(cached)
    assert "updated   beta-1: face editor" in synchronize()
    assert path.read_bytes() == content == cached.read_bytes()


def test_named_commits_get_their_run(clone: Path) -> None:
    dvc(clone, "exp", "remove", "--all-commits")
    dvc(clone, "exp", "run", "--name", "taken-over", "--set-param", "train.beta=1.5")  # from the run cache
    commit_all(clone, "Another beta")
    dvc(clone, "exp", "remove", "taken-over")
    (clone / "mlflow.db").unlink()
    assert "1 state(s)" in synchronize()
    assert "3 state(s)" not in synchronize("HEAD", "HEAD~1")
    assert len(all_runs()) == 2
    assert "2 state(s)" in synchronize("HEAD~1..HEAD", "HEAD~1")
    with pytest.raises(UserError, match="'nonsense' is not a commit of this repository"):
        synchronize("nonsense")


def test_a_colleague_has_all_results_without_training(clone: Path, tmp_path: Path) -> None:
    dvc(clone, "exp", "apply", "beta-1")
    dvc(clone, "remote", "add", "--default", "team", str(tmp_path / "store"))
    commit_all(clone, "Results")
    dvc(clone, "push")
    dvc(clone, "exp", "push", str(clone / ".git"), "beta-2")
    subprocess.run(["git", "clone", "--quiet", str(clone), str(tmp_path / "colleague")], check=True)
    os.chdir(tmp_path / "colleague")
    assert "Running stage" not in dvc(Path(), "repro", "--pull", "--allow-missing")
    assert (tmp_path / "colleague" / "plots" / "samples.png").is_file()
    dvc(Path(), "exp", "pull", "origin", "beta-2")
    synchronize()
    (own,) = set(all_runs()) - {"beta-2"}
    assert {run.info.status for run in all_runs().values()} == {"FINISHED"}
    assert all_runs()[own].data.metrics["best_epoch"] > 0
    dvc(Path(), "pull")
    weights = Path("models/vae.safetensors")
    assert weights.read_bytes() == (clone / weights).read_bytes()


def test_a_state_that_is_out_of_date_is_left_out(clone: Path) -> None:
    (clone / "mlflow.db").unlink()
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("beta: 1.0", "beta: 7.0"))
    assert "left out  the work tree: run `dvc repro`: train (train)" in synchronize()
    assert {name[:4] for name in all_runs()} == {"beta"}


def test_each_mlflow_experiment_has_its_own_runs(clone: Path) -> None:
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


def test_states_with_unusable_experiments_do_not_block_the_others(clone: Path) -> None:
    change_params(clone, "tracking", "experiment", "x" * 501)  # more than MLflow takes
    commit_all(clone, "A long name")
    change_params(clone, "tracking", "experiment", "\ud800")  # half a character
    commit_all(clone, "No name")
    change_params(clone, "tracking", "experiment", "gone")
    commit_all(clone, "The name of a deleted experiment")
    client = store.connect()
    client.delete_experiment(client.create_experiment("gone"))
    lines: list[str] = []
    with pytest.raises(UserError, match="^3 state\\(s\\) have no complete run, for the reasons above$"):
        sync(Path(), ["HEAD", "HEAD~1", "HEAD~2"], lines.append)
    refused = [line for line in lines if line.startswith("refused ")]
    assert len(refused) == 3
    assert all("tracking.experiment: '" in line for line in refused)
    assert "'gone' was deleted in MLflow. Choose another name" in "".join(refused)
    assert "exceeds the maximum length of 500 characters" in "".join(refused)
    assert any(line.startswith("updated   beta-1: ") for line in lines)
    assert "2 state(s) have their run" in lines[-1]


def test_the_run_of_a_dead_process_is_closed(clone: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from facevae.tracking.stage_run import open_run
with open_run("train") as run:
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    path = clone / "params.yaml"
    content = path.read_text().replace("beta: 1.0", "beta: 7.0")
    path.write_text(content.replace("experiment: tests", "experiment: others"))
    subprocess.run([sys.executable, "-c", script], check=False)
    subprocess.run(["git", "checkout", "--quiet", "params.yaml"], check=True)
    assert "RUNNING" in {run.info.status for run in all_runs().values()}
    assert "closed    avatars-" in synchronize()
    assert {run.info.status for run in all_runs().values()} == {"FINISHED", "KILLED"}
    assert NOTHING in synchronize()


def restore_commands(text: str) -> list[list[str]]:
    lines = [line[13:] for line in text.splitlines()]
    start = next(i for i, line in enumerate(text.splitlines()) if line.startswith("restore"))
    return [line.split("#")[0].split() for line in lines[start:]]


@pytest.mark.parametrize("holder", ["experiment", "commit"])
def test_where_prints_commands_that_restore_the_weights(clone: Path, holder: str) -> None:
    weights = clone / "models" / "vae.safetensors"
    if holder == "commit":
        synchronize()
        (name,) = [name for name in all_runs() if name.startswith("avatars")]
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
    assert all_runs()[name].info.run_id in text


def locked_outputs(folder: Path) -> list[dict[str, str]]:
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return [out for stage in stages.values() for out in stage["outs"]]


def test_a_run_gets_the_commit_that_holds_its_results(clone: Path) -> None:
    """A stage knows only the checked out commit, which has other results or none."""
    dvc(clone, "exp", "remove", "--all-commits")
    (clone / "mlflow.db").unlink()
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("num_samples: 6", "num_samples: 5"))
    subprocess.run(["git", "commit", "--quiet", "--message", "Only the params", "--all"], check=True)
    dvc(clone, "repro")
    ((name, run),) = all_runs().items()
    assert (run.data.tags["mlflow.source.git.commit"], run.data.tags["facevae.git_dirty"]) == (revision(), "false")
    commit_all(clone, "The results")
    for _ in range(2):
        synchronize("HEAD")
        assert all_runs()[name].data.tags["mlflow.source.git.commit"] == revision()
    assert revision() in where(Path(), name)


def revision(name: str = "HEAD") -> str:
    return subprocess.check_output(["git", "rev-parse", name], text=True).strip()


def test_two_experiments_of_one_name_are_restored_by_commit(clone: Path) -> None:
    dvc(clone, "exp", "run", "--name", "twin", "--set-param", "train.beta=1.5")  # from the run cache
    first = subprocess.check_output(["git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/twin"], text=True)
    subprocess.run(["git", "stash", "--quiet"], check=True)
    subprocess.run(["git", "commit", "--quiet", "--allow-empty", "--message", "Another baseline"], check=True)
    dvc(clone, "exp", "run", "--name", "twin", "--set-param", "train.beta=2.5")
    subprocess.run(["git", "stash", "--quiet"], check=True)
    synchronize()
    client = store.connect()
    twins = [run for run in runs.find_runs(client) if run.info.run_name == "twin"]
    with pytest.raises(UserError, match="twin: 2 runs match"):
        where(Path(), "twin")
    (run,) = [run for run in twins if run.data.params["train.beta"] == "1.5"]
    assert f"dvc exp apply {first.strip()}" in where(Path(), run.info.run_id)


def test_where_knows_older_names_and_names_with_quotes(clone: Path) -> None:
    dvc(clone, "exp", "run", "--name", "it's", "--set-param", "train.beta=1.5")
    synchronize()
    assert where(Path(), "it's") == where(Path(), "beta-1")
    for nobody in ("%", "_", "no'body"):
        with pytest.raises(UserError, match="has no such run"):
            where(Path(), nobody)


def test_commits_without_our_pipeline_are_skipped(clone: Path) -> None:
    subprocess.run(["git", "switch", "--quiet", "--create", "broken"], check=True)
    for content in ("stages:\n  a: 3\n", "stages:\n", "a: [1]\n", "stages: [1]\n"):
        (clone / "dvc.yaml").write_text(content)
        subprocess.run(["git", "commit", "--quiet", "--all", "--message", content], check=True)
    subprocess.run(["git", "switch", "--quiet", "-"], check=True)
    output = synchronize("broken~4..broken")
    assert output.count("left out") >= 3
    assert "beta-1" in where(Path(), "beta-1")


def test_a_users_own_stages_do_no_harm(clone: Path) -> None:
    path = clone / "dvc.yaml"
    own = "  mine:\n    cmd: [echo 1, echo 2]\n  many:\n    foreach: [1, 2]\n    do:\n      cmd: echo ${item}\n"
    path.write_text(path.read_text().replace("stages:\n", f"stages:\n{own}"))
    assert "untracked" not in dvc(clone, "repro", "--force", "--single-item", "figures")
    dvc(clone, "repro")
    assert "left out" not in synchronize()


def test_params_without_an_experiment_are_left_out(clone: Path) -> None:
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("  experiment: tests\n", "  experiments: tests\n"))
    assert "left out  the work tree: params.yaml: tracking.experiment must be a name" in synchronize()


def test_a_stage_run_on_older_results_logs_none(clone: Path) -> None:
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("beta: 1.0", "beta: 7.0"))
    before = set(all_runs())
    assert "stage figures logs no results" in dvc(clone, "repro", "--force", "--single-item", "figures")
    (new,) = set(all_runs()) - before
    assert all_runs()[new].data.tags["facevae.git_dirty"] == "true"
    assert not [key for key in all_runs()[new].data.metrics if not key.startswith("system/")]


def test_stages_beside_this_one_may_be_out_of_date(clone: Path) -> None:
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("beta: 1.0", "beta: 7.0"))
    change_params(clone, "classifier", "epochs", 3)
    before = set(all_runs())
    assert "logs no results" not in dvc(clone, "repro", "train")
    (new,) = set(all_runs()) - before
    metrics = all_runs()[new].data.metrics
    assert "best_epoch" in metrics
    assert "ssim" not in metrics


def test_a_deleted_mlflow_experiment_is_an_error_with_a_remedy(clone: Path) -> None:
    client = store.connect()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    lines: list[str] = []
    with pytest.raises(UserError, match="3 state\\(s\\) have no complete run"):
        sync(Path(), [], lines.append)
    assert re.search("'tests' was deleted.*mlflow experiments restore --experiment-id", "".join(lines))
    assert "was deleted" in dvc(clone, "repro", "--force", "--single-item", "figures")


def test_a_model_that_was_not_linked_is_not_created_twice(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def fail(*_: object, **__: object) -> None:
        raise OSError("the connection is lost")

    (clone / "mlflow.db").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", fail)
        with pytest.raises(UserError, match="failed: the connection is lost"):
            synchronize()
    synchronize()
    client = store.connect()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id])
    assert len(models) == len({model.source_run_id for model in models}) == len(all_runs())


def test_where_says_what_the_cache_lacks(clone: Path) -> None:
    digests = {out["path"]: out["md5"] for out in locked_outputs(clone)}
    digest = digests["models/directions.safetensors"]
    (clone / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    synchronize()
    (name,) = [name for name in all_runs() if name.startswith("avatars")]
    assert "dvc pull    # DVC's cache on this machine lacks" in where(Path(), name)


def test_where_finds_a_run_by_id_and_fingerprint(clone: Path) -> None:
    run = all_runs()["beta-1"]
    expected = where(Path(), "beta-1")
    assert where(Path(), run.info.run_id) == expected
    assert where(Path(), run.data.tags[runs.FINGERPRINT_TAG][:10]) == expected
    assert clone.is_dir()


def test_where_explains_why_it_finds_nothing(clone: Path) -> None:
    with pytest.raises(UserError, match="nobody: MLflow at sqlite:.* has no such run"):
        where(Path(), "nobody")
    dvc(clone, "exp", "remove", "beta-1")
    with pytest.raises(UserError, match="beta-1: no commit, DVC experiment.*dvc exp pull REMOTE beta-1"):
        where(Path(), "beta-1")


def test_figures_of_an_older_evaluation_are_not_logged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures agree with dvc.lock, but show tables of an evaluation that is out of date."""
    enter(copy, monkeypatch)
    change_params(copy, "evaluate", "num_samples", 3)
    before = set(all_runs())
    with open_run("classifier"):
        pass
    ((name, run),) = [(name, run) for name, run in all_runs().items() if name not in before]
    assert "best_epoch" in run.data.metrics, name
    assert "ssim" not in run.data.metrics
    assert "mlflow.facevae.figures" not in run.data.tags
