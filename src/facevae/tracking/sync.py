"""Reconcile MLflow with Git and DVC: every state that they hold has its run, whole and under its name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.errors import UserError
from facevae.tracking import store
from facevae.tracking.origin import COMMIT_TAG, commit_tags, experiment_names, work_tree_tags
from facevae.tracking.outputs import Outputs, read_outputs
from facevae.tracking.project_files import open_files
from facevae.tracking.record import Record
from facevae.tracking.repository import Commit, Repository
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient

Report = Callable[[str], None]  # takes one line


@dataclass
class Held:
    """A complete state, its outputs, and the commits that hold it, the newest last; none where the work tree does."""

    state: State
    outputs: Outputs
    commits: list[Commit]


def sync(root: Path, revisions: Sequence[str], report: Report) -> None:
    """Give every DVC experiment, every commit asked for and the work tree their run; close those of dead processes.

    What is not completely there, since stages have not been run since a change, is left out and reported.

    Raises
    ------
    UserError
        A revision is unknown, or the store fails.
    """
    repository = Repository(root)
    asked_for = [commit for revision in revisions for commit in repository.named(revision)]
    held = find_states(root, [*repository.experiments(), *asked_for, None], report)
    num_changed = 0
    for line in _reconcile(held, repository):
        report(line)
        num_changed += 1
    report(f"{len(held)} state(s), each with its run: {f'{num_changed} changed' if num_changed else 'nothing to do'}")


def find_states(root: Path, commits: Iterable[Commit | None], report: Report) -> list[Held]:
    """The complete states that commits hold; None stands for the work tree."""
    held: dict[tuple[str, str], Held] = {}
    for commit in commits:
        try:
            state = State(open_files(root, commit.revision if commit else None))
            key = state.experiment, state.fingerprint
            problems = [
                f"{name} ({', '.join(parts)})" for name in state.stages if (parts := [*state.differences(name)])
            ]
            outputs = read_outputs(state, [] if problems else state.stages)
        except UserError as error:
            problems = [str(error)]
        if problems:
            report(f"left out  {commit.label if commit else 'the work tree'}: to be reproduced: {'; '.join(problems)}")
            continue
        entry = held.setdefault(key, Held(state, outputs, []))
        entry.commits.extend([commit] if commit else [])
    return list(held.values())


def _reconcile(held: Iterable[Held], repository: Repository) -> Iterator[str]:
    """A line for each run that was made or changed, as it happens."""
    with store.session() as client:
        closed = store.close_dead_runs(client)
    for name in closed:
        yield f"closed    {name}: its process had died"
    for entry in held:
        with store.session() as client:
            line = _reconcile_run(client, entry, repository)
        if line:
            yield line


def _reconcile_run(client: "MlflowClient", held: Held, repository: Repository) -> str:
    """Returns what was done to the run of a state, or nothing where it was whole."""
    state, commits = held.state, held.commits
    experiment_id = store.find_or_create_experiment(client, state.experiment)
    made_at = commits[0].milliseconds if commits else None
    run, is_new = store.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name, made_at)
    if store.is_running_elsewhere(run):
        return ""
    record = Record(client, run, made_at)
    record.log_state(state)
    recorded = run.data.tags
    tags = commit_tags(recorded, commits) if commits else work_tree_tags(recorded, repository)
    names = [commit.experiment for commit in commits if commit.experiment]
    if names and experiment_names(recorded) != experiment_names(tags):  # else another clone may have named it since
        record.set_name(names[-1])
    if commits or COMMIT_TAG not in recorded:
        record.set_tags(tags)
    record.log_outputs(held.outputs)
    record.set_status("FINISHED", made_at if is_new else None)
    if not record.changes:
        return ""
    return f"{'made     ' if is_new else 'mended   '} {record.name}: {', '.join(record.changes)}"
