"""A guided search of a tiny pipeline: the real DVC, MLflow and Optuna, killed and continued."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from conftest import clean_environment, clone, dvc

from facevae.tracking import runs, store

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # MLflow's dependencies warn about each other

EPOCHS = 60  # so many that a kill or a stop comes before the last
SEARCH: dict[str, Any] = {
    "metric": "squared_error",
    "direction": "minimize",
    "num_trials": 2,
    "num_startup_trials": 1,
    "stop_after_epochs": 1,
    "seed": 1,  # suggests the higher rate first
    "fixed": {"train.epochs": EPOCHS},
    "params": {"train.learning_rate": {"choices": [0.01, 0.000001]}},
}


def files_of(folder: Path) -> dict[str, bytes]:
    """What a user has in the project: all files but those that Git ignores."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=folder, text=True
    )
    return {name: (folder / name).read_bytes() for name in listed.split("\0") if name}


def start(folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "facevae.cli_main"]
    return subprocess.Popen(command, cwd=folder, env=clean_environment())
