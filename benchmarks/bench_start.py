"""Overhead of the pipeline: starting processes, importing, DVC and MLflow.

The clone's params ask for so little work that only overhead is left. A repro with nothing to do is measured too.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from measuring import NATIVE, ROOT, Row, interleaved, seconds_of
from trial import SMALL, Trial

NUM_REPEATS = 3
TINY = {
    **SMALL,
    "data": {"num_images": 100, "image_size": 16},
    "train": {
        "epochs": 1,
        "num_threads": 1,
        **NATIVE,  # which a stage can run alone, without the variables of the portable numerics
        "kl_warmup_epochs": 1.0,
        "learning_rate_warmup_steps": 1,
    },
    "classifier": {"epochs": 1},
}


def measure(_: Path, root: Path) -> list[Row]:
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    with TemporaryDirectory(dir=root / ".facevae") as name:
        trial = Trial(Path(name) / "clone", TINY)
        without_editor = Trial(Path(name) / "figures", TINY, target="figures")
        for each in (trial, without_editor):
            each.finish()

        def again(trial: Trial) -> None:
            trial.start_over()
            trial.finish()

        def stage(name: str) -> None:
            environment = {**os.environ, "PYTHONPATH": "src"}
            command = [sys.executable, f"stages/{name}.py"]
            subprocess.run(command, cwd=trial.folder, env=environment, check=True, capture_output=True)

        contenders = {
            "whole repro with little to compute": lambda: seconds_of(partial(again, trial)),
            "the same without the editor": lambda: seconds_of(partial(again, without_editor)),
            "repro with nothing to do": lambda: seconds_of(trial.finish),
            **{f"stage {name} alone": lambda name=name: seconds_of(lambda: stage(name)) for name in stages},  # type: ignore[misc]
        }
        seconds = interleaved(contenders, NUM_REPEATS)
    return [Row(title, value, "s") for title, value in seconds.items()]
