"""The runs in the MLflow store: the one run of each state, and whether a process still writes to it."""

import atexit
import re
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout

from facevae.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT_TAG = "facevae.fingerprint"
PROCESS_TAG = "mlflow.facevae.process"  # the pages hide tags of that name
NOTE_TAG = "mlflow.note.content"  # the description in the pages
EXPERIMENT_NOTE = """\
Variational autoencoders on faces. Each run is one state of the pipeline: its code, params and data.

- `facevae where NAME` prints the commit of a run, and the commands that restore it.
- `facevae sync` gives every DVC experiment its run.
- A run's *Artifacts* hold its figures and the face editor, `editor.html`.
"""
PROCESS = r"(?P<machine>[^:]+):(?P<lock>/.*/\.facevae/processes/[0-9a-f]{32})"


def find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """The id of MLflow's experiment of that name, or a `RefusedError` if it was deleted or the store refuses it."""
    try:
        name.encode()  # half a character, which YAML can hold, would look like a failing store
        return _find_or_create_experiment(client, name)
    except Exception as error:
        if store.is_refusal(error):
            reason = store.reason_of(error)
            raise store.RefusedError(f"tracking.experiment: {name!r} cannot be used. {reason}") from error
        raise


def _find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = store.tracking_uri().startswith(store.DATABASES)
        location = (store.project_root() / "mlartifacts").as_uri() if local else None
        try:
            tags = {NOTE_TAG: EXPERIMENT_NOTE}
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another machine may have been faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise store.RefusedError(
            f"tracking.experiment: {name!r} was deleted in MLflow. Choose another name, or restore it: "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def find_or_create_run(
    client: "MlflowClient", experiment_id: str, fingerprint: str, name: str, start_milliseconds: int | None = None
) -> tuple["Run", bool]:
    """The run of a state, and whether it is new."""
    run = _find_run(client, experiment_id, fingerprint)
    if run is not None:
        return run, False
    tags = {
        FINGERPRINT_TAG: fingerprint,
        PROCESS_TAG: process_name(),
        "mlflow.user": psutil.Process().username(),  # a number, if the user has no name, as in some containers
        "mlflow.source.name": "facevae",
    }
    created = client.create_run(experiment_id, start_time=start_milliseconds, tags=tags, run_name=name)
    run = _find_run(client, experiment_id, fingerprint) or created
    return run, run.info.run_id == created.info.run_id


def _find_run(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """The run of a state. If there are several, keep the oldest and delete the others, unless a process writes to them.

    Two machines may create a run at the same moment, and a slow server may carry out a request twice.
    """
    runs = client.search_runs([experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    oldest = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    for run in runs:
        if run is not oldest and not is_running_elsewhere(run):
            client.delete_run(run.info.run_id)
    return oldest


def find_runs(client: "MlflowClient", *conditions: str) -> list["Run"]:
    """This pipeline's runs in all of MLflow's experiments that meet all conditions, written in MLflow's language."""
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    condition = " AND ".join([f"tags.`{FINGERPRINT_TAG}` LIKE '%'", *conditions])
    return list(client.search_runs(experiment_ids, condition, max_results=50_000))


def close_dead_runs(client: "MlflowClient") -> list[str]:
    """Mark runs as KILLED if their process on this machine has died; return their names."""
    running = find_runs(client, "attributes.status = 'RUNNING'")
    dead = [run for run in running if _is_dead(run.data.tags.get(PROCESS_TAG, ""))]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return [run.info.run_name for run in dead]


def is_running_elsewhere(run: "Run") -> bool:
    """Whether another process writes to a run. A process on another machine counts as alive."""
    process = run.data.tags.get(PROCESS_TAG, "")
    return run.info.status == "RUNNING" and process not in ("", process_name()) and not _is_dead(process)


@cache
def process_name() -> str:
    """This machine, and a file that this process locks until it ends, however it ends."""
    folder = store.own_folder() / "processes"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / uuid4().hex)
    lock.acquire()
    atexit.register(lock.release)  # and keep it until then
    atexit.register(Path(lock.lock_file).unlink, missing_ok=True)
    return f"{_machine()}:{lock.lock_file}"


def _is_dead(process: str) -> bool:
    """Whether a process of this machine has ended, so that nobody holds its lock."""
    match = re.fullmatch(PROCESS, process)  # the tag comes from the store: open no other file for it
    if match is None or match["machine"] != _machine():
        return False
    path = Path(match["lock"])
    try:
        path.stat()  # FileLock would create it
        with FileLock(path, timeout=0):
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):  # the process removed it at its end
        return True
    except (Timeout, PermissionError):  # the process holds it, or it is another user's
        return False
    return True


def _machine() -> str:
    """The host and, on Linux, the namespace of its process ids, by which containers of one host name differ."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino}" if namespace.exists() else socket.gethostname()
