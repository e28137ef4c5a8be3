"""Reconcile MLflow with Git and DVC: every state that they hold has its run, whole and under its name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.errors import UserError
from facevae.tracking import store
from facevae.tracking.files import open_files
from facevae.tracking.origin import commit_tags, work_tree_tags
from facevae.tracking.outputs import read_outputs
from facevae.tracking.record import Record
from facevae.tracking.repository import Commit, Repository
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient

Report = Callable[[str], None]  # takes one line


@dataclass
class Held:
    """A complete state, and the commits that hold it, the newest last; none where the work tree alone does."""

    state: State
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
    commits = [*repository.experiments(), *map(repository.commit, revisions)]
    held, names = find_states(root, [*commits, None], report)
    try:
        with store.locked():
            client = store.connect()
        num_changed = 0
        for line in _reconcile(client, held, names, repository):
            report(line)
            num_changed += 1
    except store.store_errors() as error:
        raise UserError(f"MLflow at {store.tracking_uri()} failed: {store.reason(error)}") from error
    report(f"{len(held)} state(s), each with its run: {f'{num_changed} changed' if num_changed else 'nothing to do'}")


def find_states(root: Path, commits: Iterable[Commit | None], report: Report) -> tuple[list[Held], set[str]]:
    """The complete states that commits hold, and MLflow's experiments of all; None stands for the work tree."""
    held: dict[tuple[str, str], Held] = {}
    names = set()
    for commit in commits:
        try:
            state = State(open_files(root, commit.revision if commit else None))
            names.add(state.experiment)
            problems = [
                f"{name} ({', '.join(parts)})" for name in state.stages if (parts := [*state.differences(name)])
            ]
        except UserError as error:
            problems = [str(error)]
        if problems:
            report(f"left out  {commit.label if commit else 'the work tree'}: to be reproduced: {'; '.join(problems)}")
            continue
        entry = held.setdefault((state.experiment, state.fingerprint), Held(state, []))
        entry.commits.extend([commit] if commit else [])
    return list(held.values()), names


def _reconcile(
    client: "MlflowClient", held: Iterable[Held], names: Iterable[str], repository: Repository
) -> Iterator[str]:
    """A line for each run that was made or changed, as it happens."""
    with store.locked():
        experiment_ids = {name: store.find_or_create_experiment(client, name) for name in names}
        closed = store.close_dead_runs(client, list(experiment_ids.values()))
    for name in closed:
        yield f"closed    {name}: its process had died"
    for entry in held:
        with store.locked():
            line = _reconcile_run(client, experiment_ids[entry.state.experiment], entry, repository)
        if line:
            yield line


def _reconcile_run(client: "MlflowClient", experiment_id: str, held: Held, repository: Repository) -> str:
    """Returns what was done to the run of a state, or nothing where it was whole."""
    state, commits = held.state, held.commits
    made_at = commits[0].milliseconds if commits else None
    run, is_new = store.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name, made_at)
    if store.is_running_elsewhere(run):
        return ""
    record = Record(client, run, made_at)
    names = [commit.experiment for commit in commits if commit.experiment]
    if names:
        record.set_name(names[-1])
    record.log_state(state)
    tags = run.data.tags
    record.set_tags(commit_tags(tags, commits) if commits else work_tree_tags(tags, repository))
    record.log_outputs(read_outputs(state, state.stages))
    record.set_status("FINISHED", made_at if is_new else None)
    if not record.changes:
        return ""
    name = names[-1] if names else run.info.run_name
    return f"{'made     ' if is_new else 'mended   '} {name}: {', '.join(record.changes)}"
