"""What results depend on, as one hash: equal fingerprints are equal weights."""

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from facevae.config.params import load_params
from facevae.config.schema import Params
from facevae.errors import UserError

PIPELINE = Path("dvc.yaml")


def training_fingerprint(params: Params, data_digest: str, platform: Mapping[str, str]) -> str:
    """Hash of everything that determines the weights: data, model, training params, seed, code and platform.

    The code is what dvc.yaml lists for the stage `train`, as `code_digest` sees it. The number of processes is left
    out, so that a training can be resumed with a different one.
    """
    training = params.train.model_dump(exclude={"launcher"})
    sharpening = params.sharpen.model_dump() if params.sharpen.epochs else None
    sections = {"seed": params.seed, "model": params.model.model_dump(), "train": training, "sharpen": sharpening}
    code = code_digest(Path(name) for name in _declared("train")["deps"] if name.startswith(("src/", "stages/")))
    return _digest({"data": data_digest, "code": code, "platform": dict(platform), **sections})


def inputs_digest(stage: str) -> str:
    """Hash of the params and files that dvc.yaml declares for a stage, as they are now.

    Code is hashed by content. All other files, which may be large, are hashed by name, size and modification time.
    """
    params = load_params()
    tree = params.model_dump(mode="json")
    values = {}
    for key in _declared(stage)["params"]:
        section, _, name = key.partition(".")
        values[key] = tree[section][name] if name else tree[section]
    paths = [Path(name.replace("${data.root}", params.data.root)) for name in _declared(stage)["deps"]]
    files = [state for path in paths for state in _states(path)]
    return _digest({"params": values, "files": files})


def code_digest(paths: Iterable[Path]) -> str:
    """Hash of Python files and of all Python files in folders, by relative path and by what the code does.

    Comments, docstrings, layout and the wording of errors do not count: see `_essence`.
    """
    files = {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    return _digest({file.as_posix(): _essence(file.read_text(encoding="utf-8")) for file in files})


def refuse_change(before: str, after: str) -> None:
    """Compare the fingerprints taken before and after a computation.

    DVC hashes the dependencies of a stage when the stage has ended, so it would take an edit made meanwhile for what
    was run.

    Raises
    ------
    UserError
        The fingerprints differ.
    """
    if before != after:
        raise UserError("params.yaml, the data or the code changed while the stage ran: run it again")


def _declared(stage: str) -> dict[str, Any]:
    text = PIPELINE.read_text(encoding="utf-8")
    tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C if PyYAML was built with it
    declared: dict[str, Any] = tree["stages"][stage]
    return declared


def _essence(source: str) -> str:
    """The syntax tree of a module without docstrings and without the arguments of errors and of the logger."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Call) and _only_speaks(ast.unparse(node.func)):
            node.args, node.keywords = [], []
    return ast.dump(tree)


def _only_speaks(function: str) -> bool:
    return function.endswith("Error") or function.startswith("logger.")


def _states(path: Path) -> Iterator[tuple[str, str]]:
    """Each file at or below a path, with a text that changes when the file does."""
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
