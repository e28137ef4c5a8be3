"""A guided search from its file to its best trial."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from facevae.config.params import load_params
from facevae.errors import UserError
from facevae.search.space import Search, load_search
from facevae.search.study import Study
from facevae.search.trials import Report, Runner, attempt
from facevae.search.workplace import Workplace
from facevae.tracking import pages, store, trial_runs
from facevae.tracking.repository import Repository


def search(root: Path, path: Path, report: Report) -> None:
    """Run the trials of a search that are missing, and report the best.

    Raises
    ------
    UserError
        The file is wrong, the search already runs, code or params are not those of its commit, or trials keep failing.
    """
    plan = load_search(path, load_params())
    folder = store.own_folder() / "search" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(plan.name, folder), _ended_by_signals(report):
        study, workplace = _begin(plan, root, folder)
        workplace.require_inputs_of_commit()
        workplace.end_processes()
        report(f"search {plan.name}: {plan.file.num_trials} trials from commit {study.commit[:8]}")
        report(f"its study and the output of its trials: {os.path.relpath(folder)}")
        _report_address(plan, report)
        Runner(plan, study, workplace, root, report).run()
        workplace.remove()
        _report_best(plan, study, report)


def _begin(plan: Search, root: Path, folder: Path) -> tuple[Study, Workplace]:
    """Open the study, and where its trials run; a new one only if nothing stands in its way."""
    path, repository = folder / "study.db", Repository(root)
    head = repository.head()
    if not path.is_file():
        workplace = Workplace(root, folder, head)
        workplace.require_inputs_of_commit()
        _require_metric(plan, root)
        _require_free_names(plan, repository)
        workplace.remove()  # an older search of this name may have left it
    study = Study(path, plan, head)
    return study, Workplace(root, folder, study.commit)


@contextmanager
def _alone(name: str, folder: Path) -> Iterator[None]:
    """Refuse to run the same search twice at a time."""
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"search {name} already runs in another process: wait for it, or stop that one first") from None
    with lock:
        yield


@contextmanager
def _ended_by_signals(report: Report) -> Iterator[None]:
    """End the running trial in order on Ctrl-C, SIGTERM and when the terminal closes."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,  # also where a shell script ignores it: the trial would inherit that
        signal.SIGTERM: lambda number, _: sys.exit(128 + number),
        signal.SIGHUP: lambda number, _: sys.exit(128 + number),
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        report("stopped: the same command continues the search")
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _require_metric(plan: Search, root: Path) -> None:
    """Raise a `UserError` if the metrics of the last `dvc repro` lack the search's."""
    known = {key for path in (root / "metrics").glob("*.json") for key in json.loads(path.read_text())}
    if known and plan.file.metric not in known:
        raise UserError(f"metric: {plan.file.metric!r} is unknown. Known: {', '.join(sorted(known))}")


def _require_free_names(plan: Search, repository: Repository) -> None:
    taken = [commit.experiment for commit in repository.experiments()]
    if clashes := [
        name for name in taken if name.rpartition("-")[0] == plan.name and name.rpartition("-")[2].isdigit()
    ]:
        raise UserError(
            f"DVC experiments {', '.join(clashes[:5])} exist, but their search is not on this machine: rename the file "
            f"of the new search, or remove them with `dvc exp remove {' '.join(clashes)}`"
        )


def _report_address(plan: Search, report: Report) -> None:
    condition = f"tags.`{trial_runs.SEARCH_TAG}` = '{plan.name}'"
    experiment = plan.params({}).tracking.experiment
    attempt(lambda: report(f"in MLflow: {pages.address_of_runs(pages.server_address(), experiment, condition)}"))


def _report_best(plan: Search, study: Study, report: Report) -> None:
    """Print the best trial, and how to keep it."""
    counts = ", ".join(f"{number} {state}" for state, number in study.count().items() if number)
    best = study.best()
    if best is None:
        raise UserError(f"search {plan.name} has no result: {counts}")
    values = plan.values(best.params)
    changes = " ".join(f"-S {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in values.items())
    name = study.name_of(best)
    report(f"best of {len(study.trials)} trials ({counts}): {name}, {plan.file.metric} {best.value:.6g}")
    width = max(map(len, values))
    for key, value in values.items():
        report(f"  {key:<{width}}  {value}")
    report(f"dvc exp apply {name}    # the trial itself, with what the search kept fixed")
    report(f"dvc exp run {changes}    # its values, with all else as in params.yaml")
