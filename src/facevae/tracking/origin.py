"""The tags that lead from a run back to Git and DVC."""

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from facevae.tracking.repository import Commit, Repository

COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "facevae.git_dirty"  # "false": code, params and data are those of the commit
HELD_TAG = "facevae.git_held"  # "true": the commit holds the results as well
EXPERIMENT_TAG = "facevae.dvc_experiment"  # all names of DVC experiments that are this state
REVISION_TAG = "facevae.dvc_experiment_revision"  # and their commits, as far as they are known, in the same order
BASELINE_TAG = "facevae.dvc_baseline_revision"


def experiment_names(tags: Mapping[str, str]) -> dict[str, str]:
    """The names of the DVC experiments that a run stands for, and of each the commit, or nothing."""
    names, revisions = (tags.get(tag, "").split(", ") for tag in (EXPERIMENT_TAG, REVISION_TAG))
    return {name: revision for name, revision in zip_longest(names, revisions, fillvalue="") if name}


def stage_tags(recorded: Mapping[str, str], repository: Repository, stage: str) -> dict[str, str]:
    """Those that a stage knows while it works."""
    names = experiment_names(recorded)
    names.setdefault(os.environ.get("DVC_EXP_NAME", ""), "")
    return {
        "facevae.stage": stage,
        EXPERIMENT_TAG: ", ".join(filter(None, names)),
        BASELINE_TAG: os.environ.get("DVC_EXP_BASELINE_REV", ""),
        **work_tree_tags(recorded, repository),
    }


def work_tree_tags(recorded: Mapping[str, str], repository: Repository) -> dict[str, str]:
    """The commit that is checked out, and whether the work tree differs; one that holds the very state stays."""
    if recorded.get(HELD_TAG) == "true":
        return {}
    head = repository.head()
    return {COMMIT_TAG: head, DIRTY_TAG: str(repository.is_dirty()).lower() if head else ""}


def commit_tags(recorded: Mapping[str, str], commits: Sequence[Commit]) -> dict[str, str]:
    """Those of a state that commits hold, the newest of them last.

    The names of DVC experiments are those of this clone, and those that other clones have given to other commits.
    """
    tags: dict[str, str] = {}
    own = {commit.experiment: commit.revision for commit in commits if commit.experiment}
    if own:
        known = experiment_names(recorded)
        others = {name: commit for name, commit in known.items() if commit and commit not in own.values()}
        names = {name: commit for name, commit in known.items() if name in others | own} | own  # in the order known
        tags |= {EXPERIMENT_TAG: ", ".join(names), REVISION_TAG: ", ".join(names.values())}
        if names != known:
            tags[BASELINE_TAG] = [commit.baseline for commit in commits if commit.experiment][-1]
    if recorded.get(HELD_TAG) != "true":
        tags |= {COMMIT_TAG: commits[-1].revision, DIRTY_TAG: "false", HELD_TAG: "true"}
    return tags
