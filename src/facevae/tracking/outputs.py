"""The results of a state's stages, as files of the work tree, a commit or DVC's cache hold them."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from facevae.config.paths import EDITOR, HISTORY, MODEL
from facevae.errors import UserError
from facevae.storage.tables import parse_csv
from facevae.tracking import store
from facevae.tracking.state import State, flatten

Point = tuple[str, int, float]  # metric, step, value


@dataclass(frozen=True)
class KeptFile:
    """A file that DVC keeps: its digest, and a function that reads it, or returns None if it is not on this machine."""

    digest: str | None
    read: Callable[[], bytes | None]


@dataclass(frozen=True)
class Outputs:
    """Results of stages: points of the metrics, PNG files by name, DVC's digest of the weights, the face editor."""

    points: list[Point]
    figures: dict[str, bytes]
    model_digest: str | None
    editor: KeptFile | None


def read_outputs(state: State, stage_names: Iterable[str]) -> Outputs:
    """Read the outputs of some stages, or raise a `UserError` if one is missing or damaged.

    Metrics of the whole run are points at step 0.
    """
    points: list[Point] = []
    figures: dict[str, bytes] = {}
    model_digest, editor = None, None
    for path in (path for name in stage_names for path in state.stages[name].outputs):
        if path == MODEL.as_posix():
            model_digest = state.digest(path)
        elif path == EDITOR.as_posix():
            editor = KeptFile(state.digest(path), partial(_read_kept, state, path))
        elif path == HISTORY.as_posix():
            table = parse_csv(state.read(path), HISTORY, numbers=("epoch",), stage="train")
            for row in table.to_dict("records"):
                points += epoch_points({str(key): value for key, value in row.items()})
        elif path.endswith(".json"):
            points += _metric_points(state.read(path), path)
        elif path.endswith(".png"):
            figures[PurePosixPath(path).name] = state.read(path)
    return Outputs(points, figures, model_digest, editor)


def epoch_points(row: Mapping[str, float]) -> list[Point]:
    """The numbers of a row of the history, at the step `epoch`."""
    return [(key, int(row["epoch"]), value) for key, value in row.items() if key != "epoch"]


def _metric_points(content: bytes, path: str) -> list[Point]:
    """The numbers of a JSON file under dotted names."""
    try:
        metrics = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro --force`") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} is not a JSON object: run `dvc repro --force`")
    return [(key, 0, value) for key, value in flatten(metrics).items() if isinstance(value, int | float)]


def _read_kept(state: State, path: str) -> bytes | None:
    """An output in the work tree or in DVC's cache, or None."""
    if (state.files / path).is_file():
        return state.read(path)
    from dvc.repo import Repo  # takes half a second

    with Repo(str(store.project_root())) as repo:
        cached = Path(repo.cache.local.oid_to_path(state.recorded_digest(path)))
    return cached.read_bytes() if cached.is_file() else None
