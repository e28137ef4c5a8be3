"""The study of a search: which params were tried and what came of them. Optuna keeps it in an SQLite file."""

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from facevae.errors import UserError
from facevae.search.space import Search

OPEN_ENDED = "num_trials"  # the key of a search that may change
COMMIT, SEARCH = "commit", "search"  # what the study says of itself


class Study:
    """The trials of one search, in the order in which they were begun.

    A search that goes on suggests what an uninterrupted one would: each trial has a seed of its own, and depends only
    on the trials before it.
    """

    def __init__(self, path: Path, search: Search, commit: str) -> None:
        """Open or begin a study.

        Parameters
        ----------
        path
            The SQLite file.
        search
            What to search. A `UserError` says that it differs from what the study began with.
        commit
            Where a new study begins. All trials of a study start from the same commit.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._storage = RDBStorage(f"sqlite:///{quote(os.fsencode(path.resolve()))}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=search.name,
            direction=search.file.direction,
            load_if_exists=True,
            pruner=MedianPruner(search.file.num_startup_trials, search.file.stop_after_epochs or 0),
        )
        described = search.file.model_dump(mode="json", exclude={OPEN_ENDED})
        if SEARCH not in self._study.user_attrs:
            self._study.set_user_attr(COMMIT, commit)
            self._study.set_user_attr(SEARCH, described)
        begun = self._study.user_attrs[SEARCH]
        if changed := [key for key in described if begun.get(key) != described[key]]:
            raise UserError(
                f"search {search.name}: {', '.join(changed)} changed since the search began. Only {OPEN_ENDED} may: "
                "undo the change, or copy the file under another name, which is a search of its own"
            )

    @property
    def commit(self) -> str:
        """The commit from which all trials start."""
        return str(self._study.user_attrs[COMMIT])

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far."""
        return self._study.get_trials(deepcopy=False)

    def name_of(self, trial: FrozenTrial | Trial) -> str:
        """The name of a trial's DVC experiment and MLflow run."""
        return f"{self._search.name}-{trial.number}"

    def next_trial(self) -> Trial | None:
        """The trial that was interrupted, or a new one; None: the search has ended."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING:
                return self._taken_up(trial.number)
        if len(self.trials) >= self._search.file.num_trials:
            return None
        self._study.sampler = self._sampler(len(self.trials))
        return self._study.ask()

    def _taken_up(self, number: int) -> Trial:
        study_id = self._storage.get_study_id_from_name(self._search.name)
        self._study.sampler = self._sampler(number)
        return Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _sampler(self, number: int) -> TPESampler:
        (seed,) = np.random.SeedSequence([self._search.file.seed, number]).generate_state(1)
        return TPESampler(n_startup_trials=self._search.file.num_startup_trials, seed=int(seed))

    def equal_trial(self, trial: Trial) -> FrozenTrial | None:
        """An earlier trial with the same params, whose result this one would repeat."""
        earlier = self.trials[: trial.number]
        return next((other for other in earlier if other.params == trial.params), None)

    def falls_behind(self, trial: Trial, curve: Mapping[int, float], num_epochs: int) -> str:
        """Record the validation losses by epoch, and say why the trial is to be stopped; empty if it is not.

        It is stopped if its lowest loss so far is above the median of the complete trials' at the same epoch.
        """
        for epoch in sorted(curve):
            self._record(trial, epoch, curve[epoch])
            if self._search.file.stop_after_epochs is None:
                continue
            if epoch < num_epochs and epoch == max(self._losses(trial)) and trial.should_prune():
                return self._reason(trial, epoch)
        return ""

    def _record(self, trial: Trial, epoch: int, loss: float) -> None:
        if epoch not in self._losses(trial):
            trial.report(self._oriented(loss), epoch)

    def _losses(self, trial: Trial) -> Mapping[int, float]:
        return self.trials[trial.number].intermediate_values

    def _oriented(self, loss: float) -> float:
        """A loss in the direction of the metric, as Optuna expects it."""
        return loss if self._search.file.direction == "minimize" else -loss

    def _reason(self, trial: Trial, epoch: int) -> str:
        complete = [other for other in self.trials if other.state == TrialState.COMPLETE]
        others = [other.intermediate_values[epoch] for other in complete if epoch in other.intermediate_values]
        best = min(map(self._oriented, self._losses(trial).values()))
        median = self._oriented(statistics.median(others))
        return f"after epoch {epoch} its lowest validation loss is {best:.7g}, above the median of {median:.7g}"

    def complete(self, trial: Trial, value: float, curve: Mapping[int, float]) -> None:
        """Record the metric of a trial and its validation losses by epoch."""
        for epoch, loss in curve.items():
            self._record(trial, epoch, loss)
        self._study.tell(trial.number, value)

    def stop(self, trial: Trial) -> None:
        """Record that a trial was stopped because it fell behind."""
        self._study.tell(trial.number, state=TrialState.PRUNED)

    def fail(self, trial: Trial) -> None:
        """Record that a trial has no result."""
        self._study.tell(trial.number, state=TrialState.FAIL)

    def repeat(self, trial: Trial, other: FrozenTrial) -> None:
        """Give a trial the result of an equal one."""
        is_complete = other.state == TrialState.COMPLETE
        self._study.tell(trial.number, other.value if is_complete else None, state=other.state)

    def count(self) -> dict[str, int]:
        """How many trials are complete, were stopped, and failed."""
        states = [trial.state for trial in self.trials]
        names = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        return {name: states.count(state) for name, state in names.items()}

    def best(self) -> FrozenTrial | None:
        """The first trial with the best metric; None if no trial is complete."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self._search.file.direction == "minimize" else -1
        return min(complete, key=lambda trial: sign * (trial.value or 0), default=None)
