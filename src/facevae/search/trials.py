"""Run the trials of a search one after the other, and stop those that fall behind."""

import logging
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import Trial

from facevae.config.schema import Params
from facevae.errors import UserError
from facevae.search.space import Overrides, Search, as_text
from facevae.search.study import Study
from facevae.search.workplace import Workplace
from facevae.tracking import runs, store, sync, trial_runs
from facevae.tracking.repository import Commit

MAX_FAILURES = 3  # in a row; then something else than the params is wrong
POLL_SECONDS = 2.0

Report = Callable[[str], None]  # takes one line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runner:
    """Runs the trials of a study in a workplace."""

    plan: Search
    study: Study
    workplace: Workplace
    root: Path
    report: Report

    def run(self) -> None:
        """Run trials until the study has all; raise a `UserError` if several in a row fail."""
        num_failures = 0
        while (trial := self.study.next_trial()) is not None:
            name = self.study.name_of(trial)
            values = self.plan.suggest(trial)
            if (equal := self.study.equal_trial(trial)) is not None:
                self.study.repeat(trial, equal)
                self.report(f"{name}: {as_text(values)}: as {self.study.name_of(equal)}, so it is not run again")
                continue
            self.report(f"{name}: {as_text(values)}")
            failure = self._run(trial, name, values)
            if failure:
                self.study.fail(trial)
                self.report(f"{name}: failed: {failure}")
            num_failures = num_failures + 1 if failure else 0
            if num_failures == MAX_FAILURES:
                raise UserError(f"{num_failures} trials in a row failed, the last one with: {failure}")

    def _run(self, trial: Trial, name: str, values: Overrides) -> str:
        """Run one trial, or finish what a killed search left of it; return why it failed, or an empty text."""
        try:
            params = self.plan.params(values)
        except UserError as error:
            return str(error)
        self.workplace.prepare(params)
        tags = {trial_runs.SEARCH_TAG: self.plan.name, trial_runs.TRIAL_TAG: str(trial.number)}
        reason = ""
        if (commit := self.workplace.finished(name)) is None:
            attempt(lambda: _create_experiment(params))  # here, since the clone's artifacts are removed with it
            with self.workplace.experiment(name, self.plan.file.fixed | values) as process:
                reason = self._watch(process, trial, name, params.train.epochs, tags)
            commit = self.workplace.finished(name)  # it may have ended just before it was to be stopped
        if commit is not None:
            self._complete(trial, name, commit, tags)
            return ""
        self.workplace.forget_training()
        ended = tags | ({trial_runs.STOPPED_TAG: reason} if reason else {})
        attempt(lambda: trial_runs.mark_ended(name, self.workplace.clone, ended))
        if not reason:
            return _last_error(self.workplace.log(name))
        self.study.stop(trial)
        self.report(f"{name}: stopped: {reason}")
        return ""

    def _watch(
        self, process: "subprocess.Popen[bytes]", trial: Trial, name: str, num_epochs: int, tags: dict[str, str]
    ) -> str:
        """Wait for the end of a trial, or until it falls behind; return why, or an empty text."""
        try:
            while process.poll() is None:
                curve = trial_runs.read_curve(name, self.workplace.clone, tags)
                if reason := self.study.falls_behind(trial, curve, num_epochs):
                    return reason
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        except UserError as error:
            logger.warning("%s is not watched, so it cannot be stopped: %s", name, error)
            process.wait()
        return ""

    def _complete(self, trial: Trial, name: str, commit: Commit, tags: dict[str, str]) -> None:
        """Take the result from the trial's experiment, which has it even if MLflow is down."""
        held = sync.result_of(self.root, commit)
        points = held.outputs.points
        metrics = {key: value for key, step, value in points if step == 0}
        metric = self.plan.file.metric
        if metric not in metrics:
            raise UserError(f"metric: {metric!r} is not among the metrics of {name}: {', '.join(sorted(metrics))}")
        attempt(lambda: sync.record(self.root, held, tags))
        self.study.complete(
            trial, metrics[metric], {step: value for key, step, value in points if key == trial_runs.CURVE}
        )
        self.report(f"{name}: {metric} {metrics[metric]:.6g}")


def attempt(action: Callable[[], object]) -> None:
    """Do something with the MLflow store, whose failure costs no trial."""
    try:
        action()
    except UserError as error:
        logger.warning("not recorded (run `facevae sync` later): %s", error)


def _create_experiment(params: Params) -> None:
    with store.session() as client:
        runs.find_or_create_experiment(client, params.tracking.experiment)


def _last_error(log: Path) -> str:
    """The last line of a trial's output that tells of an error, or the last line of all."""
    lines = log.read_text(errors="replace").split("\n") or [""]
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return f"{errors[-1] if errors else 'no output'} (all of it: {os.path.relpath(log)})"
