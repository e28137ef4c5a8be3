"""The way back from a run to the commit, the data and the weights that it stands for."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.config.paths import MODEL, PREPARED
from facevae.errors import UserError
from facevae.tracking import store
from facevae.tracking.origin import BASELINE_TAG, COMMIT_TAG, experiment_names
from facevae.tracking.project_files import open_files
from facevae.tracking.repository import Commit, Repository
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow.entities import Run

SHORTEST = 4  # characters of a fingerprint
FETCH = "dvc pull    # brings what the line above may have missed: the cache here lacks data or weights"


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
    run = _find_run(name)
    fingerprint = run.data.tags[store.FINGERPRINT_TAG]
    repository = Repository(root)
    held = _find_holder(repository, run)
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
    with store.session() as client:
        runs = store.find_runs(client)
    for is_meant in (
        lambda run: name in (run.info.run_id, run.info.run_name),
        lambda run: name in experiment_names(run.data.tags),
        lambda run: len(name) >= SHORTEST and run.data.tags[store.FINGERPRINT_TAG].startswith(name),
    ):
        found = [run for run in runs if is_meant(run)]
        if len(found) > 1:
            ids = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in found)
            raise UserError(f"{name}: {len(found)} runs are meant by it; give the id of one: {ids}")
        if found:
            return found[0]
    raise UserError(f"{name}: {store.store_name()} has no such run of this pipeline; see `make ui`")


def _find_holder(repository: Repository, run: "Run") -> tuple[State, Commit | None] | None:
    """A commit or experiment of this clone that holds the state of a run completely, or else the work tree (None)."""
    fingerprint, own = run.data.tags[store.FINGERPRINT_TAG], run.data.tags.get(COMMIT_TAG)
    experiments, commits = repository.experiments(), repository.commits()
    known = [commit for commit in [*experiments, *commits] if commit.revision == own]
    for commit in [*known, *reversed(experiments), *commits, None]:
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
    cache = repository.cache()
    digests = [state.recorded_digest(path) or "" for stage in state.stages.values() for path in stage.cached]
    is_here = all((cache / digest[:2] / digest[2:]).exists() for digest in digests)
    fetch = [] if is_here else [FETCH]
    if commit.experiment:
        return [f"dvc exp apply {commit.revision}", *fetch]  # two experiments may have one name
    return [f"git switch --detach {commit.revision}", *(fetch or ["dvc checkout"])]


def _not_here(run: "Run") -> str:
    tags = run.data.tags
    experiment, commit = next(reversed(experiment_names(tags)), None), tags.get(COMMIT_TAG, "no commit")
    came_from = f"DVC experiment {experiment} on {tags.get(BASELINE_TAG)}" if experiment else f"commit {commit}"
    remedy = f"dvc exp pull REMOTE {shlex.quote(experiment)}" if experiment else "git fetch --all"
    return (
        f"{run.info.run_name}: no commit, DVC experiment or work tree of this clone holds the state of this run. It "
        f"was made from {came_from}: try `{remedy}`, or restore its params from MLflow and run `dvc repro`"
    )
