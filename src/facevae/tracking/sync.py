"""Reconcile MLflow with Git and DVC: every state that they hold has its run, whole and under its name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
class Found:
    """The complete states of a project by their fingerprints, what holds each, and the experiments of MLflow."""

    states: dict[str, State] = field(default_factory=dict)
    holders: dict[str, list[Commit]] = field(default_factory=dict)  # the newest last; none: the work tree alone
    experiments: set[str] = field(default_factory=set)


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
    found = find_states(root, [*commits, None], report)
    try:
        with store.locked():
            num_changed = _reconcile(found, repository, report)
    except store.store_errors() as error:
        raise UserError(f"MLflow at {store.tracking_uri()} failed: {store.reason(error)}") from error
    changed = f"{num_changed} changed" if num_changed else "nothing to do"
    report(f"{len(found.states)} state(s), each with its run: {changed}")


def find_states(root: Path, commits: Iterable[Commit | None], report: Report) -> Found:
    """The complete states that commits hold; None stands for the work tree."""
    found = Found()
    for commit in commits:
        try:
            state = State(open_files(root, commit.revision if commit else None))
            found.experiments.add(str(state.param("tracking.experiment")))
            problems = [
                f"{name} ({', '.join(parts)})" for name in state.stages if (parts := [*state.differences(name)])
            ]
        except UserError as error:
            problems = [str(error)]
        if problems:
            report(f"left out  {commit.label if commit else 'the work tree'}: to be reproduced: {'; '.join(problems)}")
            continue
        found.states.setdefault(state.fingerprint, state)
        found.holders.setdefault(state.fingerprint, []).extend([commit] if commit else [])
    return found


def _reconcile(found: Found, repository: Repository, report: Report) -> int:
    """Returns how many runs were made or changed."""
    client = store.connect()
    experiment_ids = {name: store.find_or_create_experiment(client, name) for name in found.experiments}
    lines = [
        f"closed    {name}: its process had died" for name in store.close_dead_runs(client, [*experiment_ids.values()])
    ]
    for line in lines:
        report(line)
    for fingerprint, state in found.states.items():
        experiment_id = experiment_ids[str(state.param("tracking.experiment"))]
        line = _reconcile_run(client, experiment_id, state, found.holders[fingerprint], repository)
        if line:
            report(line)
            lines.append(line)
    return len(lines)


def _reconcile_run(
    client: "MlflowClient", experiment_id: str, state: State, commits: Sequence[Commit], repository: Repository
) -> str:
    """Returns what was done to the run of a state, or nothing where it was whole."""
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
