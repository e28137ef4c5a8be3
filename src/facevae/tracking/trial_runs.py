"""The MLflow run of a trial of a search: its tags, and the curve by which it is judged while it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.tracking import runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SEARCH_TAG = "facevae.search"  # the name of the search
TRIAL_TAG = "facevae.search_trial"  # the number of the trial
STOPPED_TAG = "facevae.search_stopped"  # why a trial was stopped
CURVE = "validation_loss"


def read_curve(name: str, clone: Path, tags: Mapping[str, str]) -> dict[int, float]:
    """The validation losses by epoch of a training in a clone; empty before its first epoch. Give its run tags."""
    with store.session() as client:
        if (run := _find_run(client, name, clone)) is None:
            return {}
        _set_tags(client, run, tags)
        return {point.step: point.value for point in client.get_metric_history(run.info.run_id, CURVE)}


def mark_ended(name: str, clone: Path, tags: Mapping[str, str]) -> None:
    """Give the run of a trial that was stopped or failed its tags.

    It does not look active, even if its process was killed, nor finished, if it was stopped between two stages.
    """
    with store.session() as client:
        runs.close_dead_runs(client)
        if (run := _find_run(client, name, clone)) is not None:
            _set_tags(client, run, tags)
            if STOPPED_TAG in tags and run.info.status != "KILLED":
                client.set_terminated(run.info.run_id, "KILLED")


def _find_run(client: "MlflowClient", name: str, clone: Path) -> "Run | None":
    """The run of that name that a process in the clone wrote: an older search may have used the name."""
    for run in runs.find_runs(client, f"attributes.run_name = '{name}'"):
        if f":{clone}/" in run.data.tags.get(runs.PROCESS_TAG, ""):
            return run
    return None


def _set_tags(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        if run.data.tags.get(key) != value:
            client.set_tag(run.info.run_id, key, value)
