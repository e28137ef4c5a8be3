"""What test_distributed.py starts with torchrun: trainings whose histories the first process writes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import disc_images, small_params

from facevae.errors import reported_errors
from facevae.model.vae import new_model
from facevae.storage.tensors import write_tensors
from facevae.train.distributed import Workers, joined_workers
from facevae.train.loop import Progress, Setup, train
from facevae.train.resume import ResumeHeader

CPU = torch.device("cpu")
TRAIN, VALIDATION = disc_images(61), disc_images(22, seed=1)


def histories(cases: dict[str, dict[str, Any]], workers: Workers, folder: Path | None = None) -> dict[str, Any]:
    """The history of each case's training, which stops after two epochs and continues.

    The first process writes the progress after two epochs to `folder`, under the name of the case.
    """
    found = {}
    for name, changes in cases.items():
        params = small_params(**changes)
        stopped: list[Progress] = []

        def stop(progress: Progress, name: str = name, stopped: list[Progress] = stopped) -> None:
            if len(progress.rows) == 2:
                stopped.append(Progress(list(progress.rows), {k: v.clone() for k, v in progress.tensors.items()}))
                if folder and workers.leads:
                    write_tensors(folder / name, progress.tensors, ResumeHeader(rows=progress.rows, previews=[]))

        setup = Setup(TRAIN, VALIDATION, params.train, CPU, seed=0, workers=workers)
        train(new_model(params.model, 8, 3, seed=0), setup, on_epoch=[stop])
        found[name] = history_from(stopped[0] if workers.leads else None, changes, workers)
    return found


def history_from(start: Progress | None, changes: dict[str, Any], workers: Workers) -> Any:
    """The history of a case's training that continues from `start`."""
    params = small_params(**changes)
    model = new_model(params.model, 8, 3, seed=0)
    setup = Setup(TRAIN, VALIDATION, params.train, CPU, seed=0, workers=workers)
    result = train(model, setup, start=start)
    return result.history.to_dict("records")


def main() -> None:
    cases, target = json.loads(sys.argv[1]), Path(sys.argv[2])
    fingerprint = os.environ["RANK"] if "differ" in cases else "same"
    with reported_errors(), joined_workers(CPU, fingerprint) as workers:
        found = histories(cases, workers, target.parent)
        if workers.leads:
            target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
