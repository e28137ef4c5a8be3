"""What stages have left behind that belongs into a run: curves, metrics, figures and which model."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from facevae.config.paths import HISTORY, MODEL
from facevae.errors import UserError
from facevae.storage.tables import parse_csv
from facevae.tracking.state import State, flatten

Point = tuple[str, int, float]  # metric, step, value


@dataclass(frozen=True)
class Outputs:
    """Points of the metrics, those of the whole run at step 0; PNG files by name; DVC's digest of the weights."""

    points: list[Point]
    figures: dict[str, bytes]
    model_digest: str | None


def read_outputs(state: State, stage_names: Iterable[str]) -> Outputs:
    """The outputs of some stages, as they lie in the work tree or the commit of a state.

    Raises
    ------
    UserError
        One is missing or damaged.
    """
    points: list[Point] = []
    figures: dict[str, bytes] = {}
    model_digest = None
    for path in (path for name in stage_names for path in state.stages[name].outputs):
        if path == MODEL.as_posix():
            model_digest = state.digest(path)
        elif path == HISTORY.as_posix():
            table = parse_csv(state.read(path), HISTORY, numbers=("epoch",), stage="train")
            for row in table.to_dict("records"):
                points.extend(epoch_points({str(key): value for key, value in row.items()}))
        elif path.endswith(".json"):
            points.extend((key, 0, value) for key, value in _metrics(state.read(path), path).items())
        elif path.endswith(".png"):
            figures[PurePosixPath(path).name] = state.read(path)
    return Outputs(points, figures, model_digest)


def _metrics(content: bytes, path: str) -> dict[str, float]:
    """The numbers of a JSON file by dotted name."""
    try:
        metrics = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro --force`") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} holds no numbers by name: run `dvc repro --force`")
    return {name: value for name, value in flatten(metrics).items() if isinstance(value, int | float)}


def epoch_points(row: dict[str, float]) -> list[Point]:
    """The numbers of a row of the history at the step `epoch`."""
    return [(key, int(row["epoch"]), value) for key, value in row.items() if key != "epoch"]
