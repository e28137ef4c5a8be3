"""The run of the current state, open while a stage works."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from facevae.config.paths import PREPARED
from facevae.errors import UserError
from facevae.tracking import runs, store
from facevae.tracking.outputs import epoch_points, read_outputs
from facevae.tracking.project_files import digest_of
from facevae.tracking.record import Record
from facevae.tracking.repository import BASELINE_TAG, EXPERIMENT_TAG, Repository, experiment_names
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)


class TrainingProgress(Protocol):
    """The history of a training, one row an epoch, and PNG files of each epoch by name."""

    @property
    def rows(self) -> Sequence[Mapping[str, float]]: ...
    @property
    def previews(self) -> Sequence[Mapping[str, bytes]]: ...


@contextmanager
def open_run(stage: str) -> Iterator["StageRun"]:
    """Open the run of the current state while a stage works.

    The run ends as FINISHED with all that the stage left on disk, as KILLED on SIGTERM or SIGINT, or as FAILED. If the
    store fails, the stage logs one warning and continues.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    start = time.monotonic()
    run = StageRun(stage)
    status = "FAILED"
    try:
        run.attempt(run.open)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status, duration_seconds=time.monotonic() - start)
        signal.signal(signal.SIGTERM, previous)


class StageRun:
    """What a stage may log while it works. Once the store has failed, its methods do nothing."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._failed = False
        self._run_id = ""
        self._record: Record | None = None  # None: not open, or another process writes to this run
        self._monitor: SystemMetricsMonitor | None = None

    def log_progress(self, progress: TrainingProgress) -> None:
        """Log what is new of a training: the numbers of each epoch, and its pictures, at the step `epoch`."""
        if record := self._record:
            rows, previews = progress.rows, enumerate(progress.previews, 1)
            pictures = {(name, epoch): content for epoch, drawn in previews for name, content in drawn.items()}
            self.attempt(lambda _: record.log_points(point for row in rows for point in epoch_points(row)))
            self.attempt(lambda _: record.log_pictures(pictures))

    def attempt(self, action: Callable[["MlflowClient"], object]) -> None:
        """Do something with the store. The first failure is logged and ends the tracking of this stage."""
        if self._failed:
            return
        try:
            with store.session() as client:
                action(client)
        except UserError as error:
            self._failed = True
            message = "stage %s continues untracked (run `facevae sync` later): %s"
            logger.warning(message, self._stage, error)

    def open(self, client: "MlflowClient") -> None:
        """Find or create the run of this state."""
        under_dvc = "DVC_STAGE" in os.environ  # then dvc.lock has the present digest of the data
        state = self._state = State(Path(), None if under_dvc else digest_of(PREPARED))
        experiment_id = runs.find_or_create_experiment(client, state.experiment)
        runs.close_dead_runs(client)
        run, _ = runs.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name)
        self._run_id = run.info.run_id
        if runs.is_running_elsewhere(run):
            message = "another process (%s) writes to run %s of this state: what it leaves out is logged at the end"
            logger.warning(message, run.data.tags[runs.PROCESS_TAG], run.info.run_name)
            return
        starts_training = self._stage == "train" and "best_epoch" not in run.data.metrics
        if starts_training and run.data.metrics:
            client.delete_run(self._run_id)  # of an interrupted training, whose points may differ from this one's
            run, _ = runs.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name)
            self._run_id = run.info.run_id
        client.update_run(self._run_id, status="RUNNING", name=os.environ.get("DVC_EXP_NAME"))
        client.set_tag(self._run_id, runs.PROCESS_TAG, runs.process_name())
        self._record = Record(client, run)
        self._record.log_state(state)
        self._record.set_tags(self._tags(run.data.tags))
        if starts_training:
            self._monitor = _monitor_system(self._run_id)

    def _tags(self, recorded: dict[str, str]) -> dict[str, str]:
        names = experiment_names(recorded)
        names.setdefault(os.environ.get("DVC_EXP_NAME", ""), "")
        return {
            "facevae.stage": self._stage,
            EXPERIMENT_TAG: ", ".join(filter(None, names)),
            BASELINE_TAG: os.environ.get("DVC_EXP_BASELINE_REV", ""),
            **Repository(Path()).work_tree_tags(recorded),
        }

    def end(self, status: str, *, duration_seconds: float) -> None:
        """End the run, if there is one yet, with one of MLflow's statuses."""
        if self._monitor is not None:
            self._monitor.finish()
        if self._run_id:
            self.attempt(lambda client: self._end(client, status, duration_seconds))

    def _end(self, client: "MlflowClient", status: str, duration_seconds: float) -> None:
        run = client.get_run(self._run_id)
        if runs.is_running_elsewhere(run):
            return
        record = Record(client, run)
        if status == "FINISHED":
            record.log_outputs(read_outputs(self._state, self._stages_up_to_date()))
        record.set_tags({f"facevae.{self._stage}.duration_seconds": f"{duration_seconds:.1f}"})
        record.describe()
        record.set_status(status)

    def _stages_up_to_date(self) -> list[str]:
        """This stage, the stages it depends on, and others whose outputs belong to this state too.

        Empty if DVC was told to run this stage on outputs that belong to another state.
        """
        state = self._state
        up_to_date = {name for name in state.stages if not state.differences(name)}
        held = {*state.upstream(self._stage), self._stage}
        stale = held - up_to_date - {self._stage}
        if stale and "DVC_STAGE" in os.environ:
            message = "stage %s logs no results, because these stages are out of date: %s. Run `dvc repro`"
            logger.warning(message, self._stage, ", ".join(sorted(stale)))
            return []
        for name in state.stages:
            if name in up_to_date and state.needs(name) <= held:
                held.add(name)
        return [name for name in state.stages if name in held]


def _monitor_system(run_id: str) -> "SystemMetricsMonitor":
    """Have MLflow measure processor, memory and GPU every ten seconds, silently if the store fails."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor
