"""The MLflow store: where it is, and the one run in it that a fingerprint has."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

from facevae.errors import UserError
from facevae.tracking.secrets import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT_TAG = "facevae.fingerprint"
PROCESS_TAG = "facevae.process"
LOCK_SECONDS = 60
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # stores that leave it to the client where artifacts go


def project_root() -> Path:
    """The root of DVC's repository, also where DVC works in a copy that it will delete."""
    here = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else mlflow.db in the project's root; a relative SQLite path starts there as well."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    if separator and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}:///{project_root() / path}"
    return uri


@contextmanager
def session() -> Iterator["MlflowClient"]:
    """A client of the store, alone among the processes of this project: first starts, and who writes, are else a race.

    Raises
    ------
    UserError
        Whatever goes wrong with a store that is down, damaged, out of reach or of another version.
    """
    folder = project_root() / ".facevae"
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS):
            yield connect()
    except UserError:
        raise
    except Exception as error:  # drivers, databases and servers have errors of their own
        raise UserError(f"{store_name()} failed: {_reason(error)}") from error


def connect() -> "MlflowClient":
    """A client of the store; one that does not answer fails within seconds."""
    _probe(tracking_uri())
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they try in vain is told once, by us
    mlflow.set_tracking_uri(tracking_uri())
    with chdir(project_root()):  # a new store notes the working directory, which may be a copy that DVC deletes
        return mlflow.MlflowClient()


@cache
def _probe(uri: str) -> None:
    """Fail at once where a database is out of reach: MLflow would try it for minutes."""
    if uri.startswith(DATABASES):
        import sqlalchemy

        os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds
        engine = sqlalchemy.create_engine(uri)
        engine.connect().close()
        engine.dispose()


def store_name() -> str:
    """The store in words, without the password that its address may have."""
    return f"MLflow at {without_credentials(tracking_uri())}"


def _reason(error: Exception) -> str:
    """The first line of an error of the store, which may go on for pages."""
    return without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """The id of MLflow's experiment of that name.

    Raises
    ------
    UserError
        It was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment: MLflow's experiment {name!r} was deleted; choose another name, or bring it back by "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    if experiment is not None:
        return str(experiment.experiment_id)
    local = tracking_uri().startswith(DATABASES)
    location = (project_root() / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another machine may have been quicker
        if (experiment := client.get_experiment_by_name(name)) is None:
            raise
        return str(experiment.experiment_id)


def find_run(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """The run of a state.

    Of several the oldest: two machines may make one at the same moment, and a slow server may carry out a request
    that was given up and repeated. The others are deleted, unless something writes to them.
    """
    runs = client.search_runs([experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    oldest = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    for run in runs:
        if run is not oldest and not is_running_elsewhere(run):
            client.delete_run(run.info.run_id)
    return oldest


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
    run = find_run(client, experiment_id, fingerprint) or made
    return run, run.info.run_id == made.info.run_id


def process_name() -> str:
    """This process, as no other on this machine was or will be called."""
    return f"{_machine()}:{os.getpid()}:{_start_of(os.getpid())}"


def _machine() -> str:
    """The host, and where the system has them the namespace of process numbers, which containers do not share."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino}" if namespace.exists() else socket.gethostname()


def _start_of(process_id: int) -> str:
    """When a process has started: by what Linux counts since its boot, since the clock may be set meanwhile."""
    boot, status = Path("/proc/sys/kernel/random/boot_id"), Path(f"/proc/{process_id}/stat")
    if not boot.exists():
        return f"{psutil.Process(process_id).create_time():.2f}"
    ticks = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return f"{boot.read_text(encoding='ascii').strip()}-{ticks}"


def is_running_elsewhere(run: "Run") -> bool:
    """Whether another process writes to a run, as far as one can know: one on another machine is taken to be alive."""
    process = run.data.tags.get(PROCESS_TAG, "")
    return run.info.status == "RUNNING" and process not in ("", process_name()) and not _is_dead(process)


def find_runs(client: "MlflowClient", condition: str = "") -> list["Run"]:
    """The runs of this pipeline, in all of MLflow's experiments, that meet a condition in MLflow's language."""
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    ours = f"tags.`{FINGERPRINT_TAG}` LIKE '%'"
    return list(
        client.search_runs(experiment_ids, f"{condition} AND {ours}" if condition else ours, max_results=50_000)
    )


def close_dead_runs(client: "MlflowClient") -> list[str]:
    """Mark runs as KILLED whose process on this machine has died without a word; their names."""
    closed = []
    for run in find_runs(client, "attributes.status = 'RUNNING'"):
        if _is_dead(run.data.tags.get(PROCESS_TAG, "")):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_name)
    return closed


def _is_dead(process: str) -> bool:
    match = re.fullmatch(r"(.+):(\d+):([\w.-]+)", process)
    if match is None or match[1] != _machine():
        return False
    try:
        found = psutil.Process(int(match[2]))
        return found.status() == psutil.STATUS_ZOMBIE or _start_of(found.pid) != match[3]
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True
    except (psutil.AccessDenied, PermissionError):  # of another user, who alone may look
        return False


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())
