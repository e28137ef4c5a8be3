"""The way back from a run to the commit, the data and the weights that it stands for."""

from pathlib import Path
from typing import TYPE_CHECKING

from facevae.errors import UserError
from facevae.layout import MODEL, PREPARED
from facevae.tracking import store
from facevae.tracking.files import open_files
from facevae.tracking.origin import BASELINE_TAG, COMMIT_TAG, EXPERIMENT_TAG
from facevae.tracking.repository import Commit, Repository
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow.entities import Run


def where(root: Path, name: str) -> str:
    """What a run stands for, and the commands that restore it.

    Parameters
    ----------
    name
        The run's name or id, or the beginning of its fingerprint.

    Raises
    ------
    UserError
        There is no such run or there are several, the store fails, or nothing in this clone holds the run's state.
    """
    try:
        run = _find_run(name)
    except store.store_errors() as error:
        raise UserError(f"MLflow at {store.tracking_uri()} failed: {store.reason(error)}") from error
    fingerprint = run.data.tags[store.FINGERPRINT_TAG]
    repository = Repository(root)
    held = _find_holder(repository, fingerprint)
    if held is None:
        raise UserError(_not_here(run))
    state, commit = held
    lines = [
        ("run", f"{run.info.run_name} ({run.info.run_id}), {run.info.status}"),
        ("fingerprint", fingerprint),
        ("commit", commit.revision if commit else f"none yet: the work tree holds it, on top of {repository.head()}"),
        *([("experiment", f"{commit.experiment}, on {commit.baseline}")] if commit and commit.experiment else []),
        ("data", f"{PREPARED}, {state.data_digest}"),
        ("model", f"{MODEL}, {state.recorded_digest(MODEL.as_posix())}"),
        *zip(("restore", "", ""), _restore(repository, state, commit), strict=False),
    ]
    return "\n".join(f"{label:<12} {text}" for label, text in lines)


def _find_run(name: str) -> "Run":
    client = store.connect()
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    fingerprint = f"tags.`{store.FINGERPRINT_TAG}`"
    for condition in (
        f"attributes.run_name = '{name}'",
        f"attributes.run_id = '{name}'",
        f"{fingerprint} LIKE '{name}%'",
    ):
        runs = client.search_runs(experiment_ids, f"{condition} AND {fingerprint} LIKE '%'")
        if len(runs) > 1:
            ids = ", ".join(run.info.run_id for run in runs)
            raise UserError(f"{name}: {len(runs)} runs are called so; give the id of one: {ids}")
        if runs:
            return runs[0]
    raise UserError(f"{name}: MLflow at {store.tracking_uri()} has no such run of this pipeline; see `make ui`")


def _find_holder(repository: Repository, fingerprint: str) -> tuple[State, Commit | None] | None:
    """The newest experiment or commit of this clone that holds a state completely, or else the work tree (None)."""
    for commit in [*reversed(repository.experiments()), *repository.commits(), None]:
        try:
            state = State(open_files(repository.root, commit.revision if commit else None))
        except UserError:  # an older commit may have no pipeline yet
            continue
        if state.fingerprint == fingerprint and not any(any(state.differences(name)) for name in state.stages):
            return state, commit
    return None


def _restore(repository: Repository, state: State, commit: Commit | None) -> list[str]:
    """Commands for the root of the project."""
    if commit is None:
        return ["nothing to do: the work tree is this state (commit it, or the next change replaces it)"]
    digests = [state.data_digest, str(state.recorded_digest(MODEL.as_posix()))]
    fetch = [] if all(map(repository.is_cached, digests)) else ["dvc pull    # the cache here lacks data or weights"]
    if commit.experiment:
        return [f"dvc exp apply {commit.experiment}", *fetch]
    return [f"git switch --detach {commit.revision}", *(fetch or ["dvc checkout"])]


def _not_here(run: "Run") -> str:
    tags = run.data.tags
    experiment, commit = tags.get(EXPERIMENT_TAG), tags.get(COMMIT_TAG, "no commit")
    came_from = f"DVC experiment {experiment} on {tags.get(BASELINE_TAG)}" if experiment else f"commit {commit}"
    remedy = f"dvc exp pull REMOTE {experiment.split(', ')[-1]}" if experiment else "git fetch --all"
    return (
        f"{run.info.run_name}: no commit, DVC experiment or work tree of this clone holds the state of this run. It "
        f"was made from {came_from}: try `{remedy}`, or restore its params from MLflow and run `dvc repro`"
    )
