"""The run of the present state, open while a stage works."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from facevae.config.paths import PREPARED
from facevae.errors import UserError
from facevae.tracking import store
from facevae.tracking.origin import stage_tags
from facevae.tracking.outputs import epoch_points, read_outputs
from facevae.tracking.project_files import WorkTree
from facevae.tracking.record import Record
from facevae.tracking.repository import Repository
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)


@contextmanager
def open_run(stage: str) -> Iterator["StageRun"]:
    """The run of this state of the pipeline, open while a stage works.

    It is FINISHED when the stage ends well, and then has all that the stage has left on disk; KILLED when SIGTERM or
    SIGINT ends it; FAILED otherwise. A store that fails costs one warning, never the stage.
    """
    previous = signal.signal(signal.SIGTERM, _raise_system_exit)
    start = time.monotonic()
    run = StageRun(stage)
    status = "FAILED"
    try:
        run.open()
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.close(status, duration_seconds=time.monotonic() - start)
        signal.signal(signal.SIGTERM, previous)


class StageRun:
    """What a stage may log while it works; each call does nothing once the store has failed."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._failed = False
        self._run_id = ""
        self._record: Record | None = None  # None: not open, or another process writes this very run
        self._monitor: SystemMetricsMonitor | None = None

    def open(self) -> None:
        """Find or make the run of this state."""
        self._attempt(self._open)

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history: its numbers at the step `epoch`."""
        if self._record is not None:
            record = self._record
            self._attempt(lambda _: record.log_points(epoch_points(row)))

    def close(self, status: str, *, duration_seconds: float) -> None:
        """End the run with a status of MLflow's; there is none yet where the stage was stopped at its very start."""
        if self._monitor is not None:
            self._monitor.finish()
        if self._run_id:
            self._attempt(lambda client: self._close(client, status, duration_seconds))

    def _attempt(self, action: Callable[["MlflowClient"], object]) -> None:
        """Do something with the store; the first failure is told and ends the tracking of this stage."""
        if self._failed:
            return
        try:
            with store.session() as client:
                action(client)
        except UserError as error:
            self._failed = True
            message = "stage %s goes on untracked (`facevae sync` makes up for it): %s"
            logger.warning(message, self._stage, error)

    def _open(self, client: "MlflowClient") -> None:
        files = WorkTree(Path())
        digest = None if "DVC_STAGE" in os.environ else files.digest(PREPARED.as_posix())  # DVC has just recorded it
        state = self._state = State(files, digest)
        experiment_id = store.find_or_create_experiment(client, state.experiment)
        store.close_dead_runs(client)
        run, _ = store.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name)
        self._run_id = run.info.run_id
        if store.is_running_elsewhere(run):
            message = "%s (%s) is at work on this very state of the pipeline; what it may leave out is logged later"
            logger.warning(message, run.info.run_name, run.data.tags[store.PROCESS_TAG])
            return
        if self._stage == "train" and run.data.metrics and not _has_training(run):
            client.delete_run(self._run_id)  # cut short: its points need not be those of this training
            run, _ = store.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name)
            self._run_id = run.info.run_id
        client.update_run(self._run_id, status="RUNNING", name=os.environ.get("DVC_EXP_NAME"))
        client.set_tag(self._run_id, store.PROCESS_TAG, store.process_name())
        self._record = Record(client, run)
        self._record.log_state(state)
        self._record.set_tags(stage_tags(run.data.tags, Repository(Path()), self._stage))
        if self._stage == "train" and not _has_training(run):
            self._monitor = _monitor_system(self._run_id)

    def _close(self, client: "MlflowClient", status: str, duration_seconds: float) -> None:
        run = client.get_run(self._run_id)
        if store.is_running_elsewhere(run):
            return
        record = Record(client, run)
        if status == "FINISHED":
            record.log_outputs(read_outputs(self._state, self._stages_up_to_date()))
        record.set_tags({f"facevae.{self._stage}.duration_seconds": f"{duration_seconds:.1f}"})
        record.set_status(status)

    def _stages_up_to_date(self) -> list[str]:
        """This stage and those that it depends on; any other where what it made holds for this state too.

        Empty where DVC was told to run this stage on what an earlier one had made of another state.
        """
        names, upstream = list(self._state.stages), self._state.upstream(self._stage)
        up_to_date = {name for name in names if not any(self._state.differences(name))}
        if "DVC_STAGE" in os.environ and (stale := upstream - up_to_date):
            message = "no results of stage %s are logged, since %s has to be run before it: `dvc repro`"
            logger.warning(message, self._stage, ", ".join(sorted(stale)))
            return []
        held = {*upstream, self._stage}
        for name in names:
            if name in up_to_date and self._state.needs(name) <= held:
                held.add(name)
        return [name for name in names if name in held]


def _has_training(run: "Run") -> bool:
    """Whether a whole training is on record."""
    return "best_epoch" in run.data.metrics


def _monitor_system(run_id: str) -> "SystemMetricsMonitor":
    """MLflow's own measurements of processor, memory and GPU, every ten seconds, silent where the store fails."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor


def _raise_system_exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
