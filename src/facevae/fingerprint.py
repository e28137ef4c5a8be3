"""What the weights depend on, as one hash: equal fingerprints are equal weights, on one machine."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facevae.errors import UserError
from facevae.params import Params

PACKAGE = Path(__file__).parent
TRAINING = (  # what training.py imports, and itself: the modules that the weights depend on
    "__init__.py",
    "binarization.py",
    "errors.py",
    "files.py",
    "hardware.py",
    "layout.py",
    "model.py",
    "objective.py",
    "params.py",
    "training.py",
    "yaml12.py",
)


def training_fingerprint(params: Params, data_digest: str) -> str:
    """Of what determines the weights: data, architecture, training, seed, code."""
    sections = {"seed": params.seed, "model": params.model.model_dump(), "train": params.train.model_dump()}
    return _digest({"data": data_digest, "code": code_digest([PACKAGE / name for name in TRAINING]), **sections})


def code_digest(paths: Iterable[Path]) -> str:
    """Of modules of this package as they lie on disk, names and contents, in any order."""
    names = {path.relative_to(PACKAGE).as_posix(): path for path in paths}
    return _digest({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()})


def refuse_change(before: str, after: str) -> None:
    """Raise a `UserError` where two fingerprints differ that were taken before and after a computation.

    DVC hashes what a stage depends on when the stage has ended, so an edit in between would pass for what was run.
    """
    if before != after:
        raise UserError("params.yaml, the data or the code changed while the stage ran; run it again")


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
