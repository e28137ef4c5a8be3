"""The MLflow store: where it is, and the one run in it that a fingerprint has."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT_TAG = "facevae.fingerprint"
PROCESS_TAG = "facevae.process"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # stores that leave it to the client where artifacts go


def project_root() -> Path:
    """The root of the project, also where DVC works in a copy that it will delete."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else mlflow.db in the project's root; a relative SQLite path starts there as well."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    if separator and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}:///{project_root() / path}"
    return uri


def connect() -> "MlflowClient":
    """A client of the store; one that does not answer fails within seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # what it retries in vain is told once, by us
    mlflow.set_tracking_uri(tracking_uri())
    with chdir(project_root()):  # a new store notes the working directory, which may be a copy that DVC deletes
        return mlflow.MlflowClient()


@contextmanager
def locked() -> Iterator[None]:
    """Alone among the processes of this project: first starts, and who writes to a run, are else a race."""
    folder = project_root() / ".facevae"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "mlflow.lock"):
        yield


def store_errors() -> tuple[type[Exception], ...]:
    """What a store that is down, damaged or out of reach raises."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, ImportError, OSError  # a missing driver; OSError covers the network


def reason(error: Exception) -> str:
    """The first line of an error of the store, which may go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """The id of MLflow's experiment of that name."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    local = tracking_uri().startswith(DATABASES)
    location = (project_root() / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(name, artifact_location=location))


def find_run(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """The run of a state: of two that different machines made at the same moment, the older."""
    runs = client.search_runs(
        [experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'", order_by=["attributes.start_time ASC"]
    )
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def find_or_create_run(
    client: "MlflowClient", experiment_id: str, fingerprint: str, name: str, start_milliseconds: int | None = None
) -> tuple["Run", bool]:
    """The run of a state, and whether it had to be made."""
    run = find_run(client, experiment_id, fingerprint)
    if run is not None:
        return run, False
    tags = {
        FINGERPRINT_TAG: fingerprint,
        PROCESS_TAG: process_name(),
        "mlflow.user": _user(),
        "mlflow.source.name": "facevae",
    }
    made = client.create_run(experiment_id, start_time=start_milliseconds, tags=tags, run_name=name)
    winner = find_run(client, experiment_id, fingerprint) or made
    if winner.info.run_id != made.info.run_id:  # another machine was quicker
        client.delete_run(made.info.run_id)
    return winner, winner.info.run_id == made.info.run_id


def process_name() -> str:
    """This process, as no other on this machine was or will be called."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_running_elsewhere(run: "Run") -> bool:
    """Whether another process writes to a run, as far as one can know: one on another machine is taken to be alive."""
    process = run.data.tags.get(PROCESS_TAG, "")
    return run.info.status == "RUNNING" and process not in ("", process_name()) and not _is_dead(process)


def close_dead_runs(client: "MlflowClient", experiment_ids: list[str]) -> list[str]:
    """Mark runs as KILLED whose process on this machine has died without a word; their names."""
    closed = []
    for run in client.search_runs(experiment_ids, "attributes.status = 'RUNNING'"):
        if _is_dead(run.data.tags.get(PROCESS_TAG, "")):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_name)
    return closed


def _is_dead(process: str) -> bool:
    host, number, created = process.rsplit(":", 2) if process else ("", "", "")
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(int(number))
        return found.status() == psutil.STATUS_ZOMBIE or f"{found.create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())
