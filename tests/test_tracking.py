"""What stages log to a real MLflow store, and what they do when the store fails."""

import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import pytest
import yaml
from conftest import ROOT, free_port, mlflow_server, small_tree
from filelock import FileLock
from PIL import Image

from facevae.config.paths import EPOCHS as PREVIEWS
from facevae.config.paths import EVALUATE_METRICS, HISTORY, MODEL, TRAIN_METRICS
from facevae.errors import UserError
from facevae.figures import gallery
from facevae.storage.tables import write_csv, write_json
from facevae.tracking import pages, runs, stage_run, store
from facevae.tracking.stage_run import StageRun, open_run
from facevae.tracking.sync import sync
from facevae.tracking.where import where
from facevae.train import previews
from facevae.train.loop import Progress

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow and its dependencies warn about each other
    pytest.mark.usefixtures("pipeline"),
    pytest.mark.xdist_group("tracking"),
]

EPOCHS = [{"epoch": epoch, "train_loss": 3.0 / epoch, "validation_loss": 4.0 / epoch} for epoch in (1.0, 2.0, 3.0)]
FIGURES = list(gallery.FIGURES)
HELD = ExitStack()  # resources that a fault holds until its test ends
ALL_PICTURES = [("samples", epoch, (40 * epoch, 0, 0)) for epoch in (1, 2, 3)]
CONFLICT = "is on record for the same state of the pipeline"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, shared because MLflow takes seconds to create one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("store")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.connect().search_experiments()
        return Path(os.environ["DVC_ROOT"]) / "mlflow.db"


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """The working directory: a pipeline without code, with prepared data and its own store."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/manifest.json").write_text("{}")
    change_params()
    return tmp_path


def change_params(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(small_tree(**changes), sort_keys=False))


def picture_of(epoch: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (40 * epoch, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def progress(*rows: dict[str, float]) -> Progress:
    """The progress of a training with these rows, and with a picture of each epoch."""
    return Progress(list(rows), {}, [{"samples": picture_of(epoch)} for epoch in range(1, len(rows) + 1)])


def pictures(run: "Run") -> list[tuple[str, int, tuple[int, ...]]]:
    """Name, step and colour of the pictures in a run's grid, as MLflow's pages read them from the files' names."""
    client = store.connect()
    found = []
    for file in client.list_artifacts(run.info.run_id, "images"):
        name, _, step, *_ = Path(file.path).name.split("+")
        if file.path.endswith(".png"):
            with Image.open(client.download_artifacts(run.info.run_id, file.path)) as image:
                found.append((name, int(step), cast("tuple[int, ...]", image.getpixel((0, 0)))))
    return sorted(found)


def log_training(factor: float = 1.0, num_epochs: int = 3) -> None:
    rows = [{key: value if key == "epoch" else value * factor for key, value in row.items()} for row in EPOCHS]
    with open_run("train") as run:
        for epoch in range(1, num_epochs + 1):
            run.log_progress(progress(*rows[:epoch]))
        previews.write(PREVIEWS, progress(*rows))
        write_csv(HISTORY, pd.DataFrame(rows))
        write_json(TRAIN_METRICS, {"best_epoch": 3.0})
        MODEL.parent.mkdir(exist_ok=True)
        MODEL.write_bytes(b"weights")


def log_evaluation() -> None:
    with open_run("evaluate"):
        write_json(EVALUATE_METRICS, {"ssim": 0.5})


def log_figures(colour: str = "red") -> None:
    with open_run("figures"):
        for name in (*(f"{name}.png" for name in FIGURES), gallery.WALK):
            Image.new("RGB", (4, 4), colour).save(f"plots/{name}")


def all_runs() -> list["Run"]:
    client = store.connect()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def points(run: "Run", key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in store.connect().get_metric_history(run.info.run_id, key))


def num_points(run: "Run") -> int:
    return sum(len(points(run, key)) for key in run.data.metrics)


def test_all_stages_of_a_state_log_to_one_run(pipeline: Path) -> None:
    log_training()
    log_evaluation()
    log_figures()
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("avatars-")
    assert run.data.params["train.beta"] == "1.0"
    assert run.data.params["data.crop"] == "null"
    assert run.data.metrics == {"train_loss": 1.0, "validation_loss": 1.333333, "best_epoch": 3.0, "ssim": 0.5}
    assert points(run, "validation_loss") == [(1, 4.0), (2, 2.0), (3, 1.333333)]
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.digest.endswith(".dir")
    assert len(given.dataset.digest) == 36
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    model = store.connect().get_logged_model(output.model_id)
    assert model.tags["dvc.path"] == "models/vae.safetensors"
    assert model.tags["dvc.md5"] == hashlib.md5(b"weights").hexdigest()
    assert run.info.artifact_uri.startswith((pipeline / "mlartifacts").as_uri())
    artifacts = store.connect().list_artifacts(run.info.run_id)
    assert {file.path for file in artifacts} == {"images", gallery.WALK, *(f"{name}.png" for name in FIGURES)}


def test_epochs_are_logged_during_training(pipeline: Path) -> None:
    with open_run("train") as run:
        run.log_progress(progress(EPOCHS[0]))
        (running,) = all_runs()
        assert running.info.status == "RUNNING"
        assert points(running, "train_loss") == [(1, 3.0)]
        (pipeline / "plots").mkdir()
        write_csv(HISTORY, pd.DataFrame(EPOCHS))
        write_json(TRAIN_METRICS, {"best_epoch": 3.0})


def test_repeating_a_state_adds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        log_training()
        log_evaluation()
        log_figures()
    (run,) = all_runs()
    assert num_points(run) == 8
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1
    assert CONFLICT not in caplog.text


def test_a_result_that_does_not_reproduce_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    log_training()
    log_evaluation()
    log_figures()
    log_training(factor=1.1)
    assert f"train_loss at step 1 is 3.3, but 3.0 {CONFLICT}" in caplog.text
    log_training()
    log_figures("blue")
    assert re.search(f"losses.png is \\w+, but \\w+ {CONFLICT} .and {len(FIGURES)} more", caplog.text)
    (run,) = all_runs()
    assert points(run, "train_loss")[0] == (1, 3.0)


def test_another_evaluation_is_another_run_with_the_same_history() -> None:
    log_training()
    log_evaluation()
    change_params(evaluate__split="validation")
    log_evaluation()
    first, second = all_runs()
    assert first.data.metrics == second.data.metrics
    assert points(first, "validation_loss") == points(second, "validation_loss")
    assert second.outputs is not None
    assert len(second.outputs.model_outputs) == 1


def test_the_next_stage_completes_a_run_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run("train") as run:
        run.log_progress(progress(EPOCHS[0]))
        monkeypatch.setattr(run, "_failed", True)
        write_csv(HISTORY, pd.DataFrame(EPOCHS))
        write_json(TRAIN_METRICS, {"best_epoch": 3.0})
    (broken,) = all_runs()
    assert (broken.info.status, num_points(broken)) == ("RUNNING", 2)
    log_evaluation()
    (whole,) = all_runs()
    assert (whole.info.status, num_points(whole)) == ("FINISHED", 8)


def test_a_run_takes_the_names_of_its_dvc_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "hoary-wolf")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    log_training()
    log_evaluation()
    (run,) = all_runs()
    assert run.info.run_name == "hoary-wolf"
    assert run.data.tags["facevae.dvc_experiment"] == "hoary-wolf"
    assert run.data.tags["facevae.dvc_baseline_revision"] == "0" * 40
    monkeypatch.setenv("DVC_EXP_NAME", "young-fox")
    log_training()
    (run,) = all_runs()
    assert run.info.run_name == "young-fox"
    assert run.data.tags["facevae.dvc_experiment"] == "hoary-wolf, young-fox"


def test_system_metrics_are_logged_once_per_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monitored: list[str] = []
    monitor = stage_run._monitor_system

    def record(run_id: str) -> Any:
        monitored.append(run_id)
        return monitor(run_id)

    monkeypatch.setattr(stage_run, "_monitor_system", record)
    for _ in range(2):
        with open_run("train"):
            (run,) = all_runs()
            deadline = time.monotonic() + 60
            while not (steps := [step for step, _ in points(run, "system/cpu_utilization_percentage")]):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            write_csv(HISTORY, pd.DataFrame(EPOCHS))
            write_json(TRAIN_METRICS, {"best_epoch": 3.0})
        assert steps == list(range(len(steps)))
    assert monitored == [run.info.run_id]  # not again for a training that is on record


def test_a_failing_stage_leaves_a_failed_run() -> None:
    with pytest.raises(ValueError, match="oops"), open_run("train"):
        raise ValueError("oops")
    assert [run.info.status for run in all_runs()] == ["FAILED"]


def stop_training(number: int) -> int:
    """Stop a training in its own process after the first epoch; return its exit status."""
    script = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
sys.path[:0] = {sys.path!r}
from facevae.tracking.stage_run import open_run
from facevae.train.loop import Progress
with open_run("train") as run:
    run.log_progress(Progress([{EPOCHS[0]!r}], {{}}, [{{"samples": {picture_of(1)!r}}}]))
    os.kill(os.getpid(), {number})
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("number", "code", "left"),
    [
        (signal.SIGTERM, 143, "KILLED"),
        (signal.SIGINT, -signal.SIGINT, "KILLED"),
        (signal.SIGKILL, -signal.SIGKILL, "RUNNING"),
    ],
)
def test_after_a_kill_runs_are_closed_and_points_not_doubled(number: signal.Signals, code: int, left: str) -> None:
    assert stop_training(number) == code
    assert [run.info.status for run in all_runs()] == [left]
    change_params(train__beta=2.0)
    log_training()
    assert sorted(run.info.status for run in all_runs()) == ["FINISHED", "KILLED"]
    change_params()
    log_training()
    assert [(run.info.status, num_points(run)) for run in all_runs()] == [("FINISHED", 7)] * 2
    assert [pictures(run) for run in all_runs()] == [ALL_PICTURES] * 2


def test_pictures_are_logged_during_training_and_once(pipeline: Path) -> None:
    log_training()
    (run,) = all_runs()
    files = store.connect().list_artifacts(run.info.run_id, "images")
    assert pictures(run) == ALL_PICTURES
    log_training()
    assert store.connect().list_artifacts(run.info.run_id, "images") == files
    shutil.rmtree(pipeline / "mlartifacts")
    log_training()
    assert pictures(run) == ALL_PICTURES


def test_a_resumed_training_logs_the_epochs_before_the_kill_at_once() -> None:
    stop_training(signal.SIGKILL)
    with open_run("train") as run:
        run.log_progress(progress(*EPOCHS[:2]))
        (running,) = all_runs()
        assert points(running, "train_loss") == [(1, 3.0), (2, 1.5)]
        assert pictures(running) == ALL_PICTURES[:2]
        previews.write(PREVIEWS, progress(*EPOCHS))
        write_csv(HISTORY, pd.DataFrame(EPOCHS))
        write_json(TRAIN_METRICS, {"best_epoch": 3.0})
    (whole,) = all_runs()
    assert pictures(whole) == ALL_PICTURES


def test_other_pictures_of_the_same_state_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    log_training()
    with open_run("train"):
        (PREVIEWS / "samples" / "2.png").write_bytes(picture_of(5))
    assert "plots/epochs is" in caplog.text
    assert CONFLICT in caplog.text
    assert [pictures(run) for run in all_runs()] == [ALL_PICTURES]


def test_points_of_an_interrupted_training_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    (EPOCHS[0], first) = ({**EPOCHS[0], "train_loss": 999.0}, EPOCHS[0])
    stop_training(signal.SIGINT)
    EPOCHS[0] = first
    log_training()
    (whole,) = all_runs()
    assert points(whole, "train_loss")[0] == (1, 3.0)
    assert CONFLICT not in caplog.text


@pytest.fixture
def other_process(pipeline: Path) -> Iterator[FileLock]:
    """What another process holds as long as it lives."""
    folder = pipeline / ".facevae" / "processes"
    folder.mkdir(parents=True)
    with FileLock(folder / ("0" * 32)) as lock:
        yield lock


def name_of(process: FileLock) -> str:
    return f"{runs._machine()}:{process.lock_file}"


def test_of_two_processes_the_second_completes_the_run(
    other_process: FileLock, caplog: pytest.LogCaptureFixture
) -> None:
    client = store.connect()
    write_csv(HISTORY, pd.DataFrame(EPOCHS))
    write_json(TRAIN_METRICS, {"best_epoch": 3.0})
    with open_run("train") as first:
        first.log_progress(progress(EPOCHS[0]))
        (other,) = [found for found in all_runs() if found.info.status == "RUNNING"]
        client.set_tag(other.info.run_id, runs.PROCESS_TAG, name_of(other_process))
        with open_run("train") as second:
            second.log_progress(progress(EPOCHS[0]))
            second.log_progress(progress(*EPOCHS[:2]))
        assert num_points(client.get_run(other.info.run_id)) == 2
        assert caplog.text.count("another process (") == 1
        third = StageRun("train")
        third.attempt(third.open)
        client.set_terminated(other.info.run_id, "KILLED")  # the other process gives up
        third.end("FINISHED", duration_seconds=1.0)
        assert num_points(client.get_run(other.info.run_id)) == 7


def test_a_run_of_another_user_stays_open(other_process: FileLock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> FileLock:
        raise PermissionError

    with open_run("train"):
        (run,) = all_runs()
        store.connect().set_tag(run.info.run_id, runs.PROCESS_TAG, name_of(other_process))
        with monkeypatch.context() as patch:
            patch.setattr(runs, "FileLock", refuse)
            assert runs.close_dead_runs(store.connect()) == []


@pytest.mark.parametrize("ended", ["killed", "removed"])
def test_a_run_is_closed_once_its_process_has_died(other_process: FileLock, ended: str) -> None:
    lock = Path(other_process.lock_file)
    with open_run("train"):
        (run,) = all_runs()
        store.connect().set_tag(run.info.run_id, runs.PROCESS_TAG, name_of(other_process))
        assert runs.close_dead_runs(store.connect()) == []
        other_process.release()
        if ended == "removed":
            lock.unlink()
        assert runs.close_dead_runs(store.connect()) == [run.info.run_name]
    assert not lock.exists()


def test_the_lock_of_a_process_ends_with_it(pipeline: Path) -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; from facevae.tracking import runs; print(runs.process_name())"
    name = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert runs._is_dead(name)
    assert not runs._is_dead(runs.process_name())
    assert list((pipeline / ".facevae/processes").iterdir()) == []


def test_a_process_tag_opens_no_other_file(pipeline: Path) -> None:
    (pipeline / "file").write_text("mine")
    assert not runs._is_dead(f"{runs._machine()}:{pipeline}/file")
    assert not runs._is_dead(f"{runs._machine()}:{pipeline}/.facevae/processes/../../file")
    assert (pipeline / "file").read_text() == "mine"


def test_a_run_of_another_machine_stays_open(other_process: FileLock) -> None:
    name = name_of(other_process)
    other_process.release()
    with open_run("train"):
        (run,) = all_runs()
        store.connect().set_tag(run.info.run_id, runs.PROCESS_TAG, f"elsewhere:{name.partition(':')[2]}")
        assert runs.close_dead_runs(store.connect()) == []
    assert [run.info.status for run in all_runs()] == ["RUNNING"]


def test_of_two_runs_created_at_once_the_older_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.connect()
    experiment_id = runs.find_or_create_experiment(client, "tests")
    create = client.create_run

    def create_late(*arguments: Any, **options: Any) -> "Run":
        create(experiment_id, tags={runs.FINGERPRINT_TAG: "f"}, start_time=1)  # the other machine
        return create(*arguments, **options)

    monkeypatch.setattr(client, "create_run", create_late)
    run, is_new = runs.find_or_create_run(client, experiment_id, "f", "name")
    assert (run.info.start_time, is_new) == (1, False)
    assert [found.info.run_id for found in all_runs()] == [run.info.run_id]


def test_duplicate_runs_of_a_slow_server_are_deleted() -> None:
    client = store.connect()
    experiment_id = runs.find_or_create_experiment(client, "tests")
    created = [client.create_run(experiment_id, tags={runs.FINGERPRINT_TAG: "f"}, start_time=9) for _ in range(3)]
    oldest = min(run.info.run_id for run in created)
    for _ in range(2):
        run, is_new = runs.find_or_create_run(client, experiment_id, "f", "name")
        assert (run.info.run_id, is_new) == (oldest, False)
        assert [found.info.run_id for found in all_runs()] == [oldest]


def test_an_experiment_created_meanwhile_by_another_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.connect()
    expected = runs.find_or_create_experiment(client, "tests")
    find = client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, find(name)))
    assert runs.find_or_create_experiment(client, "tests") == expected


def corrupt_store() -> None:
    Path("mlflow.db").write_bytes(b"this is no database" * 100)


def silent_server() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"  # the discard port, where nothing listens


def missing_driver() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "mssql+nodriver://127.0.0.1/mlflow"


def unreadable_pipeline() -> None:
    Path("dvc.yaml").write_text("[")


def folder_for_database() -> None:
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()


def secret_server() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://user:secret@127.0.0.1:9"


def invalid_address() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://[bad"


def held_lock() -> None:
    Path(".facevae").mkdir(exist_ok=True)
    lock = FileLock(".facevae/mlflow.lock")
    lock.acquire()
    HELD.callback(lock.release)


def file_for_folder() -> None:
    Path(".facevae").write_text("in the way")


def truncated_store() -> None:
    path = Path("mlflow.db")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def store_of_another_version() -> None:
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'of the future'")


def locked_store() -> None:
    database = HELD.enter_context(closing(sqlite3.connect("mlflow.db")))
    database.execute("BEGIN EXCLUSIVE")


def full_disk() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path("mlflow.db").stat().st_size // 2, hard))
    HELD.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))


def answer(status: int, seconds: float = 0) -> None:
    """Start a server that gives every request this status, after so many seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            with suppress(OSError):  # the client has gone
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"<html>not what you are looking for</html>")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HELD.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    Thread(target=server.serve_forever, daemon=True).start()
    HELD.callback(server.shutdown)
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.server_port}"


def failing_server() -> None:
    answer(500)


def other_server() -> None:
    answer(200)


def hanging_server() -> None:
    answer(200, seconds=3)


STORE_FAULTS = [
    corrupt_store,
    truncated_store,
    store_of_another_version,
    folder_for_database,
    file_for_folder,
    missing_driver,
    silent_server,
    hanging_server,
    failing_server,
    other_server,
    secret_server,
    invalid_address,
    held_lock,
]


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten all timeouts, and release at the end what a fault holds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restored after the test, whatever a fault sets
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    with HELD:
        yield


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("break_store", [*STORE_FAULTS, locked_store, full_disk, unreadable_pipeline])
def test_a_failing_store_costs_one_warning_and_no_training(
    caplog: pytest.LogCaptureFixture, break_store: Callable[[], None]
) -> None:
    break_store()
    log_training()
    assert MODEL.read_bytes() == b"weights"
    assert "secret" not in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stage train continues untracked (run `facevae sync` later)" in caplog.text


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("break_store", STORE_FAULTS)
def test_a_failing_store_ends_a_command_with_one_message(break_store: Callable[[], None]) -> None:
    break_store()
    commands: list[Callable[[], object]] = [lambda: sync(Path(), [], report=lambda _: None), lambda: where(Path(), "a")]
    for command in commands:
        with pytest.raises(UserError, match="^MLflow at .* failed: ") as error:
            command()
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("short_patience")
def test_a_disk_that_fills_up_costs_one_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_run("train") as run:
        run.log_progress(progress(EPOCHS[0]))
        full_disk()
        run.log_progress(progress(*EPOCHS[:2]))
        HELD.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Traceback" not in capfd.readouterr().err


def test_figures_that_cannot_be_stored_cost_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    log_training()
    log_evaluation()
    Path("mlartifacts").rename("elsewhere")
    Path("mlartifacts").write_text("in the way")
    log_figures()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stage figures continues untracked" in caplog.text
    Path("mlartifacts").unlink()
    Path("elsewhere").rename("mlartifacts")
    log_figures()
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert len(store.connect().list_artifacts(run.info.run_id)) == len(FIGURES) + 2  # and the folder of pictures


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (HISTORY, b""),
        (HISTORY, b"epoch,train_loss\n1,0."),
        (HISTORY, b"other\n1\n"),
        (TRAIN_METRICS, b'{"best_epoch": '),
        (TRAIN_METRICS, b"[]"),
        (TRAIN_METRICS, b"\xff"),
    ],
)
def test_damaged_outputs_are_named_and_not_logged(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    log_training()
    change_params(evaluate__split="validation")
    path.write_bytes(content)
    log_evaluation()
    (warning,) = caplog.messages
    assert warning.startswith(f"stage evaluate continues untracked (run `facevae sync` later): {path} ")


@pytest.mark.slow
def test_a_server_that_stops_costs_one_warning(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with ExitStack() as running:
        running.enter_context(mlflow_server(pipeline, port))
        with open_run("train") as run:
            run.log_progress(progress(EPOCHS[0]))
            running.close()
            run.log_progress(progress(*EPOCHS[:2]))
            write_csv(HISTORY, pd.DataFrame(EPOCHS))
            write_json(TRAIN_METRICS, {"best_epoch": 3.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with mlflow_server(pipeline, port):
        (run_left,) = all_runs()
        assert (run_left.info.status, num_points(run_left)) == ("RUNNING", 2)
        log_evaluation()
        log_figures()
        (whole,) = all_runs()
        assert (whole.info.status, num_points(whole)) == ("FINISHED", 8)
        assert whole.info.artifact_uri.startswith("mlflow-artifacts:")
        path = store.connect().download_artifacts(whole.info.run_id, "samples.png", str(pipeline))
        assert Path(path).read_bytes() == Path("plots/samples.png").read_bytes()


def test_a_temporary_copy_of_dvc_uses_the_project_store(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_training()
    monkeypatch.setenv("DVC_ROOT", str(pipeline))
    copy = shutil.copytree(
        pipeline, pipeline / ".dvc/tmp/exps/copy", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", ".*")
    )
    monkeypatch.chdir(copy)
    for uri in ("", "sqlite:///mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        log_evaluation()
        log_figures()
    (run,) = all_runs()
    assert run.data.metrics["ssim"] == 0.5
    assert not (copy / "mlflow.db").exists()
    assert not (copy / "mlartifacts").exists()
    assert ".dvc/tmp" not in json.dumps(run.to_dictionary())


def test_a_store_is_found_under_a_path_of_special_characters(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline / "a b%20c" / "#d?e=f&g;h" / "'i' \"j\" $HOME `k` {l} [m]* n\\o é 人"
    folder.parent.mkdir(parents=True)
    shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("a b*"))
    (folder / ".dvc").mkdir()
    monkeypatch.chdir(folder)
    log_training()
    log_evaluation()
    log_figures()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
    (picture,) = folder.glob("mlartifacts/*/artifacts/losses.png")
    (run,) = all_runs()
    downloaded = store.connect().download_artifacts(run.info.run_id, "losses.png")
    assert Path(downloaded).read_bytes() == picture.read_bytes()
    assert [path.name for path in (pipeline / "a b%20c").iterdir()] == [folder.parent.name]


def test_a_new_store_does_not_remember_a_temporary_copy(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(pipeline))
    (pipeline / "mlflow.db").unlink()
    (pipeline / "copy").mkdir()
    monkeypatch.chdir(pipeline / "copy")
    for experiment in store.connect().search_experiments():
        assert "copy" not in experiment.artifact_location


def test_a_stage_imports_no_dvc_and_loads_mlflow_late() -> None:
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from facevae.tracking.stage_run import open_run
print("mlflow" in sys.modules)
with open_run("train"):
    print("mlflow" in sys.modules, "dvc" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
    assert printed.split() == ["False", "True", "False"]


def test_a_stage_stopped_at_its_start_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    StageRun("train").end("KILLED", duration_seconds=0.1)
    assert caplog.text == ""


SENTENCE = "Detected an out-of-date database schema: version 1 was found, but 2.0 was expected."


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SENTENCE, SENTENCE),
        (f"{SENTENCE} " * 3, f"{SENTENCE} {SENTENCE} {SENTENCE}"),
        (f"{SENTENCE}\nTake a\n  backup.", f"{SENTENCE} Take a backup."),
        (f"{SENTENCE} " * 20, " ".join([SENTENCE] * (500 // (len(SENTENCE) + 1)))),
        (f"{SENTENCE} Response body: '{'<html> ' * 200}'", SENTENCE),
        (f"{SENTENCE}\n[SQL: SELECT 1]\n(Background: https://sqlalche.me/e/20/e3q8)", SENTENCE),
        (f"{SENTENCE}\n\nTraceback: ...", SENTENCE),
        ("page " * 200, "page " * 99 + "..."),
        ("http://user:secret@host fails. Ask user:secret@host.", "http://host fails. Ask user:secret@host."),
        ("", "ValueError"),
    ],
    ids=range(10),
)
def test_a_reason_consists_of_whole_sentences(message: str, expected: str) -> None:
    assert store.reason_of(ValueError(message)) == expected


def test_the_message_of_an_outdated_store_is_whole() -> None:
    store_of_another_version()
    with pytest.raises(UserError, match="^MLflow at .* failed: .*[.!]$"), store.session():
        pass


def test_a_run_and_its_experiment_describe_themselves(pipeline: Path) -> None:
    log_training()
    (run,) = all_runs()
    assert "SSIM" not in run.data.tags["mlflow.note.content"]
    log_evaluation()
    (run,) = all_runs()
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("`avatars`, 8 x 8 pixels, a latent of 3 dimensions; from ")
    assert "| SSIM | 0.5 |" in note
    assert f"`facevae where {run.data.tags[runs.FINGERPRINT_TAG][:8]}`" in note
    experiment = store.connect().get_experiment_by_name("tests")
    assert experiment is not None
    assert "facevae sync" in experiment.tags["mlflow.note.content"]
    assert pipeline.is_dir()


def test_a_description_of_the_user_stays(pipeline: Path) -> None:
    log_training()
    (run,) = all_runs()
    store.connect().set_tag(run.info.run_id, "mlflow.note.content", "My best")
    log_evaluation()
    assert all_runs()[0].data.tags["mlflow.note.content"] == "My best"
    assert pipeline.is_dir()


def test_the_pages_show_only_tags_that_the_docs_explain(pipeline: Path) -> None:
    log_training()
    log_evaluation()
    log_figures()
    explained = (ROOT / "docs" / "experiments.md").read_text()
    visible = {tag for tag in all_runs()[0].data.tags if not tag.startswith("mlflow.")}  # the pages hide the others
    assert {tag for tag in visible if f"`{tag}`" not in explained} <= {
        f"facevae.{stage}.duration_seconds" for stage in ("evaluate", "figures")
    }
    assert pipeline.is_dir()


def test_the_address_of_the_runs_names_their_experiment(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_training()
    experiment = store.connect().get_experiment_by_name("tests")
    assert experiment is not None
    assert pages.server_address() == "http://127.0.0.1:5000"
    address = pages.address_of_runs("http://127.0.0.1:5000", "tests")
    runs_page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    assert address == runs_page
    address = pages.address_of_runs("http://127.0.0.1:5000", "tests", "tags.`a b` = 'c'")
    assert address == f"{runs_page}&searchFilter=tags.%60a%20b%60%20%3D%20%27c%27"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hunter2@example.org/")
    assert pages.server_address() == "https://example.org"
    assert pipeline.is_dir()


def test_a_server_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SECONDS", 0.1)
    with pytest.raises(UserError, match="does not answer: start it with `make ui`"):
        pages.wait_for(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("display", ["", ":0"])
def test_a_browser_is_opened_where_there_are_windows(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    pages.show("http://127.0.0.1:5000/#")
    assert opened == (["http://127.0.0.1:5000/#"] if display else [])
