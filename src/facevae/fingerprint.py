"""What a result depends on, as one hash: equal fingerprints are equal results, on one machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

from facevae.params import Params

PACKAGE = Path(__file__).parent
WITHOUT_EFFECT = frozenset({"cli.py", "tracking.py"})  # modules that no result depends on


def training_fingerprint(params: Params, data_digest: str) -> str:
    """Of what determines the weights: data, architecture, training, seed, code."""
    sections = {"seed": params.seed, "model": params.model.model_dump(), "train": params.train.model_dump()}
    return _digest({"data": data_digest, "code": code_digest(), **sections})


def pipeline_fingerprint(params: Params, data_digest: str) -> str:
    """Of what determines every metric and figure: that of the training, and what is measured and shown."""
    sections = {"evaluate": params.evaluate.model_dump(), "figures": params.figures.model_dump()}
    return _digest({"training": training_fingerprint(params, data_digest), **sections})


def code_digest() -> str:
    """Of the library's modules as they lie on disk, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name not in WITHOUT_EFFECT:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(PACKAGE).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
