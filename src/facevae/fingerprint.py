"""What results depend on, as one hash: equal fingerprints are equal weights."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from facevae.errors import UserError
from facevae.params import Params, load_params

PACKAGE = Path(__file__).parent
PIPELINE = Path("dvc.yaml")
TRAINING = (  # what training.py imports, and itself: the modules that the weights depend on
    "__init__.py",
    "adam.py",
    "batches.py",
    "binarization.py",
    "consistency.py",
    "errors.py",
    "files.py",
    "hardware.py",
    "layout.py",
    "model.py",
    "objective.py",
    "optimization.py",
    "params.py",
    "training.py",
    "workers.py",
    "yaml12.py",
)


def training_fingerprint(params: Params, data_digest: str, platform: Mapping[str, str]) -> str:
    """Of what determines the weights: data, architecture, training, seed, code, and what they are computed by.

    How many processes share the work is left out, so that a training may go on with another number of them.
    """
    training = params.train.model_dump(exclude={"launcher"})
    sections = {"seed": params.seed, "model": params.model.model_dump(), "train": training}
    code = code_digest([PACKAGE / name for name in TRAINING])
    return _digest({"data": data_digest, "code": code, "platform": dict(platform), **sections})


def inputs_digest(stage: str) -> str:
    """Of the params and the files that dvc.yaml declares for a stage, as they are at this moment.

    Code counts by its content; everything else, which may be large, by its files' names, sizes and times.
    """
    declared = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"][stage]
    params = load_params()
    tree = params.model_dump(mode="json")
    values = {}
    for key in declared["params"]:
        section, _, name = key.partition(".")
        values[key] = tree[section][name] if name else tree[section]
    paths = [Path(name.replace("${data.root}", params.data.root)) for name in declared["deps"]]
    return _digest({"params": values, "files": [state for path in paths for state in _states(path)]})


def code_digest(paths: Iterable[Path]) -> str:
    """Of modules of this package as they lie on disk, names and contents, in any order."""
    names = {path.relative_to(PACKAGE).as_posix(): path for path in paths}
    return _digest({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()})


def refuse_change(before: str, after: str) -> None:
    """Raise a `UserError` where two fingerprints differ that were taken before and after a computation.

    DVC hashes what a stage depends on when the stage has ended, so an edit in between would pass for what was run.
    """
    if before != after:
        raise UserError(
            "params.yaml, the data or the code changed while the stage ran, so its results do not count: run it again"
        )


def _states(path: Path) -> Iterator[tuple[str, str]]:
    """Each file at a path or below it, with what tells whether it has changed."""
    if path.is_dir():
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            yield from _states(path / name)
    elif path.suffix == ".py":
        yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    elif path.exists() and path.suffix != ".pyc":
        status = path.stat()
        yield str(path), f"{status.st_size} {status.st_mtime_ns}"


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
