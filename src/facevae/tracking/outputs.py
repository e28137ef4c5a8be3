"""The results of a state's stages, as files of the work tree, a commit or DVC's cache hold them."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from facevae.config.paths import EDITOR, EPOCHS, HISTORY, MODEL
from facevae.errors import UserError
from facevae.storage.tables import parse_csv
from facevae.tracking import store
from facevae.tracking.image_grid import Pictures
from facevae.tracking.project_files import files_below
from facevae.tracking.state import State, flatten

PREVIEW = re.compile(r"(?P<name>[^/]+)/(?P<epoch>\d+)\.png")

Point = tuple[str, int, float]  # metric, step, value
ContentT = TypeVar("ContentT")


@dataclass(frozen=True)
class Kept(Generic[ContentT]):
    """An output that DVC keeps: its digest, and a function that reads it; None if it is not on this machine."""

    digest: str | None
    read: Callable[[], ContentT | None]


@dataclass(frozen=True)
class Outputs:
    """Results of stages: points of the metrics, pictures by name, DVC's digest of the weights, and what DVC keeps."""

    points: list[Point]
    figures: dict[str, bytes]
    previews: Kept[Pictures] | None
    model_digest: str | None
    editor: Kept[bytes] | None


def read_outputs(state: State, stage_names: Iterable[str]) -> Outputs:
    """Read the outputs of some stages, or raise a `UserError` if one is missing or damaged.

    Metrics of the whole run are points at step 0.
    """
    points: list[Point] = []
    figures: dict[str, bytes] = {}
    previews, model_digest, editor = None, None, None
    for path in (path for name in stage_names for path in state.stages[name].outputs):
        if path == MODEL.as_posix():
            model_digest = state.digest(path)
        elif path == EDITOR.as_posix():
            editor = Kept(state.digest(path), partial(read_kept, state, path))
        elif path == EPOCHS.as_posix():
            previews = Kept(state.digest(path), partial(_read_previews, state, path))
        elif path == HISTORY.as_posix():
            table = parse_csv(state.read(path), HISTORY, numbers=("epoch",), stage="train")
            for row in table.to_dict("records"):
                points += epoch_points({str(key): value for key, value in row.items()})
        elif path.endswith(".json"):
            points += _metric_points(state.read(path), path)
        elif path.endswith((".png", ".gif")):
            figures[PurePosixPath(path).name] = state.read(path)
    return Outputs(points, figures, previews, model_digest, editor)


def epoch_points(row: Mapping[str, float]) -> list[Point]:
    """The numbers of a row of the history, at the step `epoch`; an empty cell, which is NaN, has none."""
    numbers = {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)}
    return [(key, int(row["epoch"]), value) for key, value in numbers.items()]


def _metric_points(content: bytes, path: str) -> list[Point]:
    """The numbers of a JSON file under dotted names."""
    try:
        metrics = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro --force`") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} is not a JSON object: run `dvc repro --force`")
    return [(key, 0, value) for key, value in flatten(metrics).items() if isinstance(value, int | float)]


def read_kept(state: State, path: str) -> bytes | None:
    """An output in the work tree or in DVC's cache, or None."""
    return state.read(path) if (state.files / path).is_file() else _read_cached(state.recorded_digest(path))[0]


def _read_previews(state: State, path: str) -> Pictures | None:
    """The pictures of all epochs, from a folder in the work tree or in DVC's cache, or None."""
    files: dict[str, bytes | None]
    if (state.files / path).is_dir():
        files = {name: file.read_bytes() for name, file in files_below(state.files / path)}
    else:
        (listed,) = _read_cached(state.recorded_digest(path))
        digests = {entry["relpath"]: entry["md5"] for entry in json.loads(listed or b"[]")}
        files = dict(zip(digests, _read_cached(*digests.values()), strict=True))
    pictures = {
        (match["name"], int(match["epoch"])): content
        for name, content in files.items()
        if content is not None and (match := PREVIEW.fullmatch(name))
    }
    return pictures if pictures and len(pictures) == len(files) else None


def _read_cached(*digests: str | None) -> list[bytes | None]:
    """Files in DVC's cache, each None if it is not there."""
    if not digests or None in digests:
        return [None] * len(digests)
    from dvc.repo import Repo  # takes half a second

    with Repo(str(store.project_root())) as repo:
        paths = [Path(repo.cache.local.oid_to_path(digest)) for digest in digests]
    return [path.read_bytes() if path.is_file() else None for path in paths]
