"""One MLflow run for each distinct state of the pipeline; the only importer of mlflow.

A run is found by the pipeline's fingerprint, so that all stages of one state log to the same run without handing a
run id around, and a stage that runs again adds no point twice. A store that does not answer costs one warning, never
a training.
"""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import pandas as pd
from filelock import FileLock

from facevae.files import round_number
from facevae.fingerprint import pipeline_fingerprint, training_fingerprint
from facevae.layout import EVALUATE_METRICS, HISTORY, MODEL, PREPARED, TRAIN_METRICS
from facevae.params import Params, flatten
from facevae.prepared import PreparedSet

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

FINGERPRINT_TAG = "facevae.fingerprint"
INPUTS = ("src", "stages", "params.yaml", "dvc.yaml")  # what makes a commit another one than the tag says

logger = logging.getLogger(__name__)


@contextmanager
def open_run(params: Params, prepared: PreparedSet, *, stage: str) -> Iterator["Run"]:
    """The run of this state of the pipeline, open while a stage works.

    It is FINISHED when the stage ends well, KILLED when SIGTERM or SIGINT ends it, and FAILED otherwise.
    """
    previous = signal.signal(signal.SIGTERM, _raise_system_exit)
    start = time.monotonic()
    run = Run(stage)
    status = "FAILED"
    try:
        run.open(params, prepared)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.close(status, duration_seconds=time.monotonic() - start)
        signal.signal(signal.SIGTERM, previous)


class Run:
    """What a stage may log; each call does nothing once the store has failed."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._failed = False
        self._logged: dict[tuple[str, int], float] = {}  # metric and step to value

    def open(self, params: Params, prepared: PreparedSet) -> None:
        """Find or make the run of this state, and log what earlier stages would have logged."""
        self._attempt(lambda: self._open(params, prepared))

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log a row of the history: its numbers at the step `epoch`."""
        metrics = {key: value for key, value in row.items() if key != "epoch"}
        self._attempt(lambda: self._log(metrics, step=int(row["epoch"])))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log numbers that belong to the whole run."""
        self._attempt(lambda: self._log(metrics, step=0))

    def log_figures(self, paths: Sequence[Path]) -> None:
        """Store pictures as artifacts under figures/."""

        def store() -> None:
            for path in paths:
                self._connected.log_artifact(self._run_id, str(path), "figures")

        self._attempt(store)

    def log_model(self, fingerprint: str) -> None:
        """Link the model of this training, whose weights stay where DVC holds them."""
        self._attempt(lambda: self._link_model(fingerprint))

    def close(self, status: str, *, duration_seconds: float) -> None:
        """End the run with a status of MLflow's; there is none yet where the stage was stopped at its very start."""

        def end() -> None:
            self._connected.set_tag(self._run_id, f"facevae.{self._stage}.duration_seconds", f"{duration_seconds:.1f}")
            self._connected.set_terminated(self._run_id, status)

        if self._run_id:
            self._attempt(end)

    @property
    def _connected(self) -> "MlflowClient":
        assert self._client is not None
        return self._client

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do something with the store; the first failure is told and ends the tracking of this stage."""
        if self._failed:
            return
        try:
            action()
        except _store_errors() as error:
            self._failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            logger.warning("MLflow at %s failed, stage %s goes on untracked: %s", tracking_uri(), self._stage, reason)

    def _open(self, params: Params, prepared: PreparedSet) -> None:
        fingerprint = pipeline_fingerprint(params, prepared.digest)
        root = _project_root()
        (root / ".facevae").mkdir(exist_ok=True)
        with FileLock(root / ".facevae" / "mlflow.lock"):  # the first starts of several processes are a race
            client = self._client = _connect()
            experiment_id = _find_or_create_experiment(client, params.tracking.experiment)
            run = _find_run(client, experiment_id, fingerprint)
            if run is None:
                name = f"{params.data.source}-{fingerprint[:8]}"
                run = client.create_run(experiment_id, tags={FINGERPRINT_TAG: fingerprint}, run_name=name)
        self._run_id, self._experiment_id = run.info.run_id, experiment_id
        client.update_run(self._run_id, status="RUNNING", name=os.environ.get("DVC_EXP_NAME"))
        for key in run.data.metrics:
            points = client.get_metric_history(self._run_id, key)
            self._logged.update({(key, point.step): point.value for point in points})
        self._log_origin(params, prepared)
        self._log_earlier_stages(params, prepared)

    def _log_earlier_stages(self, params: Params, prepared: PreparedSet) -> None:
        """What this run lacks of the stages before, which DVC had no need to repeat for this state."""
        if self._stage == "train":
            return
        for row in pd.read_csv(HISTORY).to_dict("records"):
            self._log({str(key): value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))
        for path in [TRAIN_METRICS, EVALUATE_METRICS] if self._stage == "figures" else [TRAIN_METRICS]:
            self._log(json.loads(path.read_text(encoding="utf-8")), step=0)
        self._link_model(training_fingerprint(params, prepared.digest))

    def _log_origin(self, params: Params, prepared: PreparedSet) -> None:
        """The params, the data and where in Git and DVC the run comes from."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        run = self._connected.get_run(self._run_id)
        new = {key: value for key, value in flatten(params).items() if key not in run.data.params}
        tags = {key: value for key, value in _origin_tags(self._stage).items() if value}
        self._connected.log_batch(
            self._run_id,
            params=[Param(key, "null" if value is None else str(value)) for key, value in new.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if run.inputs is None or not run.inputs.dataset_inputs:
            dataset = Dataset(params.data.source, prepared.digest[:36], "local", f'{{"uri": "{PREPARED}"}}')
            context = InputTag("mlflow.data.context", "training")
            self._connected.log_inputs(self._run_id, [DatasetInput(dataset, [context])])

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        new = []
        for key, value in ((key, round_number(value)) for key, value in metrics.items()):
            recorded = self._logged.get((key, step))
            if recorded is None:
                new.append(Metric(key, value, int(time.time() * 1000), step))
                self._logged[key, step] = value
            elif recorded != value:
                message = "%s at step %d is %s, but for this same state of the pipeline %s is on record"
                logger.warning(message, key, step, value, recorded)
        if new:
            self._connected.log_batch(self._run_id, metrics=new)

    def _link_model(self, fingerprint: str) -> None:
        import mlflow
        from mlflow.entities import LoggedModelOutput

        outputs = self._connected.get_run(self._run_id).outputs
        if outputs is not None and outputs.model_outputs:
            return
        mlflow.set_tracking_uri(tracking_uri())
        model = mlflow.create_external_model(
            name="vae",
            source_run_id=self._run_id,
            experiment_id=self._experiment_id,
            model_type="VAE",
            tags={"facevae.path": str(MODEL), "facevae.training_fingerprint": fingerprint},
        )
        self._connected.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step=0)])


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else a SQLite file in the project's root, also in DVC's own copies."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_project_root() / 'mlflow.db'}"


def _project_root() -> Path:
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def _connect() -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri())


def _store_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, ImportError, OSError  # a missing driver; OSError covers the network


def _find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if os.environ.get("MLFLOW_TRACKING_URI") else (_project_root() / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _find_run(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "MlflowRun | None":
    runs = client.search_runs([experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'", max_results=1)
    return runs[0] if runs else None


def _origin_tags(stage: str) -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    return {
        "mlflow.source.name": "facevae",
        "mlflow.source.git.commit": commit,
        "facevae.git_dirty": str(bool(_git("status", "--porcelain", "--", *INPUTS))).lower() if commit else "",
        "facevae.dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "facevae.dvc_baseline_revision": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "facevae.stage": stage,
    }


def _git(*arguments: str) -> str:
    """What git prints, or nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _raise_system_exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
