"""Seconds of training until a quality is reached: today's recipes beside those that they replaced.

There are two goals. The demo's is the validation loss that twenty epochs of Adam once ended at. The other one is 6.52
bits a value on faces at 64 x 64, 6,500 to train and 500 to validate, by the evidence lower bound. A schedule must end
with its training, so each recipe has its own length, and its time is that of the first epoch that reaches the goal.
docs/records.md keeps the history.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import RESULTS, hardware
from quality import ADAM, BEST, Contender, params_of, prepared_and_judge

from facevae.config.params import load_params
from facevae.config.schema import Params
from facevae.data.prepared import PreparedSet
from facevae.device import set_up_device
from facevae.errors import reported_errors
from facevae.model.vae import new_model
from facevae.storage.tables import write_json
from facevae.train.loop import Progress, train

DEMO_GOAL = -32_036.0  # nats an image
FACES_GOAL = 6.52  # bits a value


class _GoalReached(Exception):
    """Ends a training."""


def seconds_to_goal(title: str, params: Params, prepared: PreparedSet, goal: float) -> dict[str, Any]:
    """Train until the validation loss is at most `goal` nats, or to the end; seconds are None if it never is."""
    row: dict[str, Any] = {"recipe": title, "goal_nats": goal, "seconds": None}
    manifest = prepared.manifest
    model = new_model(params.model, manifest.image_size, manifest.channels, seed=params.seed)
    start = time.perf_counter()

    def watch(progress: Progress) -> None:
        losses = [epoch["validation_loss"] for epoch in progress.rows]
        row.update(epochs=len(losses), lowest_loss=min(losses), trained_seconds=round(time.perf_counter() - start, 1))
        if losses[-1] <= goal:
            row["seconds"] = row["trained_seconds"]
            raise _GoalReached

    images = prepared.images("train"), prepared.images("validation")
    try:
        train(model, *images, params.train, set_up_device(params.train), seed=params.seed, on_epoch=[watch])
    except _GoalReached:
        pass
    print(json.dumps(row), flush=True)
    return row


def changed(preset: str, *changes: Mapping[str, Any]) -> Params:
    """The params of a preset for faces at 64 x 64, with changes; a later one wins."""
    return params_of(Contender("", preset, {key: value for change in changes for key, value in change.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="a folder with img_align_celeba/ and list_attr_celeba.txt")
    parser.add_argument("work", type=Path, help="a folder for prepared images, the same as for quality.py")
    arguments = parser.parse_args()
    with reported_errors():
        avatars, demo = PreparedSet().verified(), load_params()
        best = changed("presets/celeba-best.yaml", BEST)
        faces, _ = prepared_and_judge(arguments.images, arguments.work / str(best.data.image_size), best)
        num_values = faces.images("validation")[0].size
        faces_goal = (FACES_GOAL - 8) * math.log(2) * num_values
        rows = [
            seconds_to_goal("demo, Adam", changed("params.yaml", ADAM, {"train.epochs": 20}), avatars, DEMO_GOAL),
            seconds_to_goal("demo, as committed", demo, avatars, DEMO_GOAL),
            seconds_to_goal("faces, Adam", changed("presets/celeba-best.yaml", BEST, ADAM_FACES), faces, faces_goal),
            seconds_to_goal("faces, best recipe", best, faces, faces_goal),
        ]
        facts = hardware()
        write_json(RESULTS / f"record-{str(facts['vectors']).lower()}.json", {"hardware": facts, "rows": rows})


if __name__ == "__main__":
    main()
