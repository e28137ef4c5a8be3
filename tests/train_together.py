"""What test_workers.py has torchrun start several times over: trainings whose histories the first process writes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from conftest import disc_images, small_params

from facevae.errors import reported_errors
from facevae.model import new_model
from facevae.training import Progress, train
from facevae.workers import Workers, joined_workers

TRAIN, VALIDATION = disc_images(61), disc_images(22, seed=1)


def histories(cases: dict[str, dict[str, Any]], workers: Workers, sign: Path | None = None) -> dict[str, Any]:
    """The history of each case's training, which is stopped and goes on; the file `sign` tells of its second epoch."""
    found = {}
    for name, changes in cases.items():
        params = small_params(**changes)
        stopped: list[Progress] = []

        def stop(progress: Progress, stopped: list[Progress] = stopped) -> None:
            if len(progress.rows) == 2:
                stopped.append(Progress(list(progress.rows), {k: v.clone() for k, v in progress.tensors.items()}))
                if sign:
                    sign.touch()

        arguments = (TRAIN, VALIDATION, params.train)
        train(new_model(params.model, 8, 3, seed=0), *arguments, seed=0, on_epoch=[stop], workers=workers)
        start = stopped[0] if workers.leads else None
        result = train(new_model(params.model, 8, 3, seed=0), *arguments, seed=0, start=start, workers=workers)
        found[name] = result.history.to_dict("records")
    return found


def main() -> None:
    cases, target = json.loads(sys.argv[1]), Path(sys.argv[2])
    fingerprint = os.environ["RANK"] if "differ" in cases else "same"
    with reported_errors(), joined_workers(small_params().train, fingerprint) as workers:
        found = histories(cases, workers, target.with_suffix(".begun"))
        if workers.leads:
            target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
