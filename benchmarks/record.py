"""Seconds of training until a quality is reached: today's recipes beside those that they replaced.

There are two goals. The demo's is the validation loss that twenty epochs of Adam once ended at. The other one is 6.52
bits a value on faces at 64 x 64, 6,500 to train and 500 to validate, by the evidence lower bound. A schedule must end
with its training, so each recipe has its own length, and its time is that of the first epoch that reaches the goal.
docs/records.md keeps the history.
"""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import RESULTS, hardware
from quality import ADAM, BEST, BEST_ADAM, Contender, params_of, prepared_and_judge

from facevae.config.schema import Params
from facevae.data.prepared import PreparedSet
from facevae.device import set_up_device
from facevae.errors import reported_errors
from facevae.model.vae import new_model
from facevae.storage.tables import write_json
from facevae.train.loop import Progress, Setup, train

DEMO_GOAL = -32_036.0  # nats an image
FACES_GOAL = 6.52  # bits a value
FACES = "presets/celeba-best.yaml"

FIRST_MUON = {
    "model.channels": [32, 64, 128, 256],
    "model.kernel_size": 4,
    "train.epochs": 5,
    "train.learning_rate": 0.002,
    "train.muon_learning_rate": 0.02,
    "train.average_decay": 0.995,
    "train.clip_gradient_norm": 20000.0,
}
DEMO: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = (
    ("Adam, 20 epochs", (ADAM, {"train.epochs": 20})),
    ("Muon, 5 epochs", (FIRST_MUON,)),
    ("Muon, another network, 3 epochs", ({"train.epochs": 3},)),
)
RECIPES: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = (
    ("Adam, 20 epochs", (BEST_ADAM, {"train.epochs": 20})),
    ("Muon, 3 epochs", (BEST, {"train.epochs": 3})),
)


class _GoalReachedError(Exception):
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
            raise _GoalReachedError

    images = prepared.images("train"), prepared.images("validation")
    with contextlib.suppress(_GoalReachedError):
        setup = Setup(*images, params.train, set_up_device(params.train), seed=params.seed)
        train(model, setup, on_epoch=[watch])
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
        avatars = PreparedSet().verified()
        best = changed(FACES, BEST)
        faces, _ = prepared_and_judge(arguments.images, arguments.work / str(best.data.image_size), best)
        num_values = faces.images("validation")[0].size
        faces_goal = (FACES_GOAL - 8) * math.log(2) * num_values
        rows = [
            *(
                seconds_to_goal(f"demo: {title}", changed("params.yaml", *own), avatars, DEMO_GOAL)
                for title, own in DEMO
            ),
            *(seconds_to_goal(f"faces: {title}", changed(FACES, *own), faces, faces_goal) for title, own in RECIPES),
        ]
        facts = hardware()
        write_json(RESULTS / f"record-{str(facts['vectors']).lower()}.json", {"hardware": facts, "rows": rows})


if __name__ == "__main__":
    main()
