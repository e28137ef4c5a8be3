"""One run for each state, in a real SQLite store; MLflow itself is imported only by these tests."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from conftest import disc_images, small_params
from PIL import Image

from facevae import tracking
from facevae.files import write_csv, write_json
from facevae.layout import EVALUATE_METRICS, HISTORY, TRAIN_METRICS
from facevae.params import Params
from facevae.preparation import prepare
from facevae.prepared import PreparedSet
from facevae.sources.folder import open_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and what it stands on warn of each other

EPOCHS = [{"epoch": epoch, "train_loss": 3.0 / epoch, "validation_loss": 4.0 / epoch} for epoch in (1.0, 2.0, 3.0)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store; MLflow takes seconds to make one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("store")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking._connect().search_experiments()
        return Path(os.environ["DVC_ROOT"]) / "mlflow.db"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> PreparedSet:
    """A small prepared set in a folder that is the working directory and has a store of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    Path("images").mkdir()
    for i, pixels in enumerate(disc_images(10)):
        Image.fromarray(pixels).save(f"images/{i}.png")
    params = small_params(data__source="folder").data
    prepare(open_folder(Path("images"), None), params, seed=0, target=Path("prepared"))
    return PreparedSet(Path("prepared"))


def log_training(prepared: PreparedSet, params: Params, factor: float = 1.0) -> None:
    with tracking.open_run(params, prepared, stage="train") as run:
        for row in EPOCHS:
            run.log_epoch({key: value if key == "epoch" else value * factor for key, value in row.items()})
        run.log_metrics({"best_epoch": 3.0})
        run.log_model("training fingerprint")
    write_csv(HISTORY, pd.DataFrame(EPOCHS))
    write_json(TRAIN_METRICS, {"best_epoch": 3.0})


def log_evaluation(prepared: PreparedSet, params: Params) -> None:
    with tracking.open_run(params, prepared, stage="evaluate") as run:
        run.log_metrics({"ssim": 0.5})
    write_json(EVALUATE_METRICS, {"ssim": 0.5})


def all_runs() -> list["Run"]:
    client = tracking._connect()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in tracking._connect().get_metric_history(run_id, key))


def test_all_stages_of_a_state_log_to_one_run(prepared: PreparedSet, tmp_path: Path) -> None:
    params = small_params()
    log_training(prepared, params)
    log_evaluation(prepared, params)
    with tracking.open_run(params, prepared, stage="figures") as figures:
        Image.new("RGB", (4, 4)).save("samples.png")
        figures.log_figures([Path("samples.png")])
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("avatars-")
    assert run.data.params["train.beta"] == "1.0"
    assert run.data.params["data.crop"] == "null"
    assert {"best_epoch": 3.0, "ssim": 0.5}.items() <= run.data.metrics.items()
    assert history(run.info.run_id, "validation_loss") == [(1, 4.0), (2, 2.0), (3, 1.333333)]
    assert run.inputs is not None
    assert [given.dataset.digest for given in run.inputs.dataset_inputs] == [prepared.digest[:36]]
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert [file.path for file in tracking._connect().list_artifacts(run.info.run_id, "figures")] == [
        "figures/samples.png"
    ]


def test_the_same_state_again_adds_no_point_and_no_model(prepared: PreparedSet) -> None:
    log_training(prepared, small_params())
    log_training(prepared, small_params())
    (run,) = all_runs()
    assert len(history(run.info.run_id, "train_loss")) == 3
    assert len(history(run.info.run_id, "best_epoch")) == 1
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1


def test_a_value_that_does_not_reproduce_is_told_loudly(
    prepared: PreparedSet, caplog: pytest.LogCaptureFixture
) -> None:
    log_training(prepared, small_params())
    assert "is on record" not in caplog.text
    log_training(prepared, small_params(), factor=1.1)
    assert "train_loss at step 1 is 3.3, but for this same state of the pipeline 3.0 is on record" in caplog.text
    (run,) = all_runs()
    assert history(run.info.run_id, "train_loss")[0] == (1, 3.0)


def test_another_evaluation_is_another_run_with_the_same_history(prepared: PreparedSet) -> None:
    log_training(prepared, small_params())
    log_evaluation(prepared, small_params(evaluate__split="validation"))
    first, second = all_runs()
    assert history(first.info.run_id, "validation_loss") == history(second.info.run_id, "validation_loss")


def test_other_figures_are_another_run_that_lacks_nothing(prepared: PreparedSet) -> None:
    log_training(prepared, small_params())
    log_evaluation(prepared, small_params())
    with tracking.open_run(small_params(figures__num_samples=5), prepared, stage="figures"):
        pass
    first, second = all_runs()
    assert first.data.metrics == second.data.metrics
    assert history(first.info.run_id, "validation_loss") == history(second.info.run_id, "validation_loss")
    assert second.outputs is not None
    assert len(second.outputs.model_outputs) == 1


def test_a_store_that_failed_midway_is_made_whole_by_the_next_stage(
    prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.open_run(small_params(), prepared, stage="train") as run:
        run.log_epoch(EPOCHS[0])
        monkeypatch.setattr(run, "_failed", True)
        for row in EPOCHS[1:]:
            run.log_epoch(row)
    (broken,) = all_runs()
    assert broken.info.status == "RUNNING"
    write_csv(HISTORY, pd.DataFrame(EPOCHS))
    write_json(TRAIN_METRICS, {"best_epoch": 3.0})
    log_evaluation(prepared, small_params())
    (whole,) = all_runs()
    assert whole.info.status == "FINISHED"
    assert history(whole.info.run_id, "train_loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_a_dvc_experiment_gives_the_run_its_name(prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "hoary-wolf")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    log_training(prepared, small_params())
    (run,) = all_runs()
    assert run.info.run_name == "hoary-wolf"
    assert run.data.tags["facevae.dvc_experiment"] == "hoary-wolf"
    assert run.data.tags["facevae.dvc_baseline_revision"] == "0" * 40


def test_a_failing_stage_leaves_a_failed_run(prepared: PreparedSet) -> None:
    with pytest.raises(ValueError, match="oops"), tracking.open_run(small_params(), prepared, stage="train"):
        raise ValueError("oops")
    assert [run.info.status for run in all_runs()] == ["FAILED"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_stopped_stage_leaves_a_killed_run(prepared: PreparedSet, number: signal.Signals, code: int) -> None:
    script = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has its children ignore it
sys.path[:0] = {sys.path!r}
from pathlib import Path
from conftest import small_params
from facevae import tracking
from facevae.prepared import PreparedSet
with tracking.open_run(small_params(), PreparedSet(Path("prepared")), stage="train"):
    os.kill(os.getpid(), {int(number)})
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=Path.cwd(), capture_output=True, check=False)
    assert process.returncode == code, process.stderr.decode()
    assert [run.info.status for run in all_runs()] == ["KILLED"]
    assert prepared.folder.is_dir()


def corrupt_store() -> None:
    Path("mlflow.db").write_bytes(b"this is no database" * 100)


def silent_server() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"  # the discard port: nothing listens


def missing_driver() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "mssql+nodriver://127.0.0.1/mlflow"


@pytest.mark.parametrize("break_store", [corrupt_store, silent_server, missing_driver])
def test_a_store_that_fails_costs_one_warning_and_no_training(
    prepared: PreparedSet,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    break_store: Callable[[], None],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what is set below is undone
    break_store()
    log_training(prepared, small_params())
    assert caplog.text.count("goes on untracked") == 1


def test_a_repeated_run_in_a_temporary_copy_finds_the_store(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_training(prepared, small_params())
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    copy = tmp_path / "copy"
    for name in ("metrics", "plots"):
        shutil.copytree(name, copy / name)
    monkeypatch.chdir(copy)
    log_evaluation(PreparedSet(tmp_path / "prepared"), small_params())
    (run,) = all_runs()
    assert run.data.metrics["ssim"] == 0.5
    assert sorted(path.name for path in copy.iterdir()) == ["metrics", "plots"]


def test_a_stage_that_is_stopped_before_its_run_is_open_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    tracking.Run("train").close("KILLED", duration_seconds=0.1)
    assert caplog.text == ""
