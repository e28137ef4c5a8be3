"""Reconcile MLflow with Git and DVC: every state that they hold has its run, whole and under its name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.errors import UserError
from facevae.tracking import runs, store
from facevae.tracking.outputs import Outputs, read_outputs
from facevae.tracking.project_files import open_files
from facevae.tracking.record import Record
from facevae.tracking.registry import tag_published
from facevae.tracking.repository import COMMIT_TAG, Commit, Repository, commit_tags, experiment_names
from facevae.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient

Report = Callable[[str], None]  # takes one line


@dataclass
class Held:
    """A complete state, its outputs, and the commits that hold it, newest last; none if only the work tree does."""

    state: State
    outputs: Outputs
    commits: list[Commit]

    @property
    def name(self) -> str:
        """What a report calls it: its newest experiment or commit, or the work tree."""
        return _name(self.commits[-1] if self.commits else None)


def sync(root: Path, revisions: Sequence[str], report: Report) -> None:
    """Give every DVC experiment, every named commit and the work tree its run, and close the runs of dead processes.

    States that are incomplete, because params or code changed since the last `dvc repro`, are reported and left out.
    A `UserError` says that a revision is unknown, the store fails, or, after all others have their run, that the store
    refuses some states, e.g. for their experiment.
    """
    repository = Repository(root)
    named = [commit for revision in revisions for commit in repository.named(revision)]
    held = find_states(root, [*repository.experiments(), *named, None], report)
    with store.session() as client:
        lines = [f"closed    {name}: its process died" for name in runs.close_dead_runs(client)]
    for line in lines:
        report(line)
    num_refused = 0
    for entry in held:
        try:
            with store.session() as client:
                line = _reconcile(client, entry, repository)
        except store.RefusedError as error:
            num_refused += 1
            report(f"refused   {entry.name}: {error}")
            continue
        if line:
            report(line)
            lines.append(line)
    changed = f"{len(lines)} run(s) changed" if lines else "nothing to do"
    report(f"{len(held) - num_refused} state(s) have their run: {changed}")
    if num_refused:
        raise UserError(f"{num_refused} state(s) have no complete run, for the reasons above")


def find_states(root: Path, commits: Iterable[Commit | None], report: Report) -> list[Held]:
    """The complete states that commits hold; None stands for the work tree."""
    held: dict[tuple[str, str], Held] = {}
    for commit in commits:
        try:
            state = State(open_files(root, commit.revision if commit else None))
            key = state.experiment, state.fingerprint
            changes = {name: ", ".join(parts) for name in state.stages if (parts := state.differences(name))}
            if changes:
                raise UserError("run `dvc repro`: " + "; ".join(f"{name} ({parts})" for name, parts in changes.items()))
            entry = held.setdefault(key, Held(state, read_outputs(state, state.stages), []))
        except UserError as error:
            report(f"left out  {_name(commit)}: {error}")
        else:
            entry.commits += [commit] if commit else []
    return list(held.values())


def result_of(root: Path, commit: Commit) -> Held:
    """The complete state that a commit holds, or a `UserError`."""
    problems: list[str] = []
    for entry in find_states(root, [commit], problems.append):
        return entry
    raise UserError("; ".join(problems))


def record(root: Path, held: Held, tags: Mapping[str, str]) -> None:
    """Give a state its run, with these tags beside its own."""
    with store.session() as client:
        _reconcile(client, held, Repository(root), tags)


def _name(commit: Commit | None) -> str:
    return commit.experiment or commit.revision[:7] if commit else "the work tree"


def _reconcile(
    client: "MlflowClient", held: Held, repository: Repository, more_tags: Mapping[str, str] | None = None
) -> str:
    """Complete the run of a state; return what was done, or an empty text."""
    state, commits = held.state, held.commits
    experiment_id = runs.find_or_create_experiment(client, state.experiment)
    made_at = commits[0].milliseconds if commits else None
    run, is_new = runs.find_or_create_run(client, experiment_id, state.fingerprint, state.default_name, made_at)
    if runs.is_running_elsewhere(run):
        return ""
    record = Record(client, run, made_at)
    record.log_state(state)
    recorded = run.data.tags
    tags = commit_tags(recorded, commits) if commits else repository.work_tree_tags(recorded)
    names = [commit.experiment for commit in commits if commit.experiment]
    if names and experiment_names(recorded) != experiment_names(tags):  # else another clone may have named it since
        record.set_name(names[-1])
    if commits or COMMIT_TAG not in recorded:
        record.set_tags(tags)
    record.set_tags(more_tags or {})
    record.log_outputs(held.outputs)
    record.describe()
    if tag_published(client, run):
        record.changes.append("published versions")
    record.set_status("FINISHED", made_at if is_new else None)
    if not record.changes:
        return ""
    return f"{'created' if is_new else 'updated'}   {record.name}: {', '.join(record.changes)}"
