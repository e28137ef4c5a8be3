"""The way back from a run to its commit, data and weights."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.config.paths import MODEL, PREPARED
from facevae.errors import UserError
from facevae.tracking import runs, store
from facevae.tracking.project_files import open_files
from facevae.tracking.registry import describe
from facevae.tracking.repository import BASELINE_TAG, COMMIT_TAG, Commit, Repository, experiment_names
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow.entities import Run

SHORTEST = 4  # characters of a fingerprint
UNTRACKED = "`facevae sync` gives each experiment and the work tree its run"


def where(root: Path, name: str) -> str:
    """What a run stands for, and the commands that restore it.

    The name is the run's name or id, or the beginning of its fingerprint; an empty one means the work tree's run. A
    `UserError` says that no run or several runs match, that the store fails, or that nothing in this clone holds the
    run's state.
    """
    run = find_run(name)
    with store.session() as client:
        published = describe(client, run)
    repository = Repository(root)
    state, commit = find_holder(repository, run)
    lines = [
        ("run", f"{run.info.run_name} ({run.info.run_id}), {run.info.status}"),
        ("fingerprint", state.fingerprint),
        ("commit", commit.revision if commit else f"none yet: only the work tree has it, based on {repository.head()}"),
        *([("experiment", f"{commit.experiment}, on {commit.baseline}")] if commit and commit.experiment else []),
        ("data", f"{PREPARED}, {state.data_digest}"),
        ("model", f"{MODEL}, {state.recorded_digest(MODEL.as_posix())}"),
        *([("published", published)] if published else []),
        *zip(("restore", ""), _restore(root, state, commit), strict=False),
    ]
    return "\n".join(f"{label:<12} {text}" for label, text in lines)


def find_run(name: str) -> "Run":
    """The run of that name or id, or whose fingerprint begins so; a `UserError` if none or several match.

    An empty name means the work tree's run.
    """
    name = name or State(store.project_root()).fingerprint
    with store.session() as client:
        known = runs.find_runs(client)
    for is_meant in (
        lambda run: name in (run.info.run_id, run.info.run_name),
        lambda run: name in experiment_names(run.data.tags),
        lambda run: len(name) >= SHORTEST and run.data.tags[runs.FINGERPRINT_TAG].startswith(name),
    ):
        found = [run for run in known if is_meant(run)]
        if len(found) > 1:
            ids = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in found)
            raise UserError(f"{name}: {len(found)} runs match. Give the id of one: {ids}")
        if found:
            return found[0]
    raise UserError(f"{name}: {store.store_name()} has no such run of this pipeline; `make ui` lists them. {UNTRACKED}")


def find_holder(repository: Repository, run: "Run") -> tuple[State, Commit | None]:
    """The complete state of a run, and the commit or experiment of this clone that holds it, or None: the work tree."""
    fingerprint, own = run.data.tags[runs.FINGERPRINT_TAG], run.data.tags.get(COMMIT_TAG)
    commits: list[Commit | None] = [*reversed(repository.experiments()), *repository.commits(), None]
    for commit in sorted(commits, key=lambda commit: commit is None or commit.revision != own):
        try:
            state = State(open_files(repository.root, commit.revision if commit else None))
        except UserError:  # an older commit may have no pipeline yet
            continue
        if state.fingerprint == fingerprint and not any(map(state.differences, state.stages)):
            return state, commit
    experiment, baseline = next(reversed(experiment_names(run.data.tags)), None), run.data.tags.get(BASELINE_TAG)
    origin = f"DVC experiment {experiment} on {baseline}" if experiment else f"commit {own or 'unknown'}"
    remedy = f"dvc exp pull REMOTE {shlex.quote(experiment)}" if experiment else "git fetch --all"
    raise UserError(
        f"{run.info.run_name}: no commit, DVC experiment or work tree of this clone has this run's state. It came from "
        f"{origin}. Try `{remedy}`, or copy its params from MLflow and run `dvc repro`"
    )


def _restore(root: Path, state: State, commit: Commit | None) -> list[str]:
    """Commands for the project's root."""
    if commit is None:
        return ["nothing to do: the work tree is this state. Commit it before you change it"]
    from dvc.repo import Repo  # takes half a second

    with Repo(str(root)) as repo:
        digests = [state.recorded_digest(path) or "" for stage in state.stages.values() for path in stage.cached]
        is_here = all(repo.cache.local.exists(digest) for digest in digests)
    fetch = [] if is_here else ["dvc pull    # DVC's cache on this machine lacks data or weights of this state"]
    if commit.experiment:
        return [f"dvc exp apply {commit.revision}", *fetch]  # not by name, which two experiments may share
    return [f"git switch --detach {commit.revision}", *(fetch or ["dvc checkout"])]
