"""The tags that lead from a run back to Git and DVC."""

import os
from collections.abc import Mapping, Sequence

from facevae.tracking.repository import Commit, Repository

COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "facevae.git_dirty"  # "false": code and params are those of the commit
EXPERIMENT_TAG = "facevae.dvc_experiment"  # all names of experiments that are this state, the newest last
BASELINE_TAG = "facevae.dvc_baseline_revision"


def stage_tags(recorded: Mapping[str, str], repository: Repository, stage: str) -> dict[str, str]:
    """Those that a stage knows while it works."""
    name, names = os.environ.get("DVC_EXP_NAME", ""), recorded.get(EXPERIMENT_TAG, "")
    return {
        "facevae.stage": stage,
        EXPERIMENT_TAG: names if name in names.split(", ") else f"{names}, {name}".removeprefix(", "),
        BASELINE_TAG: os.environ.get("DVC_EXP_BASELINE_REV", ""),
        **work_tree_tags(recorded, repository),
    }


def work_tree_tags(recorded: Mapping[str, str], repository: Repository) -> dict[str, str]:
    """The commit that is checked out, and whether it is this very state; a commit that is known to be so stays."""
    if recorded.get(DIRTY_TAG) == "false":
        return {}
    head = repository.head()
    return {COMMIT_TAG: head, DIRTY_TAG: str(repository.is_dirty()).lower() if head else ""}


def commit_tags(recorded: Mapping[str, str], commits: Sequence[Commit]) -> dict[str, str]:
    """Those of a state that commits hold, the newest of them last; DVC experiments among them give it their names."""
    tags: dict[str, str] = {}
    experiments = [commit for commit in commits if commit.experiment]
    if experiments:
        names = ", ".join(commit.experiment for commit in experiments)
        tags |= {EXPERIMENT_TAG: names, BASELINE_TAG: experiments[-1].baseline}
    if recorded.get(DIRTY_TAG) != "false":
        tags |= {COMMIT_TAG: commits[-1].revision, DIRTY_TAG: "false"}
    return tags
