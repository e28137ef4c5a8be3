"""A state of the pipeline: its params, code and data, the fingerprint of these, and what dvc.lock knows of it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from facevae.errors import UserError
from facevae.layout import PARAMS, PREPARED
from facevae.tracking.files import Files
from facevae.yaml12 import Yaml12Loader

SOURCE_STAGE = "prepare"  # the digest of its output speaks for its code and params
MISSING = object()


@dataclass(frozen=True)
class Stage:
    """An entry of dvc.yaml: paths, and keys of the params."""

    command: str
    params: tuple[str, ...]
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: tuple[str, ...]  # the outputs that DVC holds; Git has the others


class State:
    """What the pipeline's files say, in the work tree or in a commit.

    Parameters
    ----------
    files
        Where to read params.yaml, dvc.yaml, dvc.lock and the code.
    data_digest
        DVC's digest of the prepared set; None: the one in dvc.lock.

    Raises
    ------
    UserError
        params.yaml, dvc.yaml or dvc.lock is missing or no mapping, or names no prepared set.
    """

    def __init__(self, files: Files, data_digest: str | None = None) -> None:
        self.files = files
        self.params = _read_yaml(files, PARAMS.as_posix())
        entries = _read_yaml(files, "dvc.yaml")["stages"]
        self.stages = {name: _parse_stage(entry, self.params) for name, entry in entries.items()}
        self._lock = _read_yaml(files, "dvc.lock").get("stages", {}) if files.read("dvc.lock") else {}
        digest = data_digest or self.recorded_digest(PREPARED.as_posix())
        if digest is None:
            raise UserError(f"dvc.lock has no digest of {PREPARED}: run `dvc repro`")
        self.data_digest = digest

    @cached_property
    def fingerprint(self) -> str:
        """Of all that determines metrics and figures: data, params and code of the stages that work on the data."""
        stages = {
            name: {
                "command": stage.command,
                "params": {key: _normalized(self.param(key)) for key in stage.params},
                "code": {path: self.files.digest(path) for path in stage.dependencies if path not in self._produced},
            }
            for name, stage in self.stages.items()
            if name != SOURCE_STAGE
        }
        content = json.dumps({"data": self.data_digest, "stages": stages}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def experiment(self) -> str:
        """The MLflow experiment that its run goes to."""
        return str(self.param("tracking.experiment"))

    @property
    def default_name(self) -> str:
        """What its run is called where no DVC experiment gives it a name."""
        return f"{self.param('data.source')}-{self.fingerprint[:8]}"

    def param(self, key: str) -> object:
        """The value of a dotted key or a whole section; `MISSING` where there is none."""
        value: Any = self.params
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return MISSING
            value = value[part]
        return value

    def recorded_digest(self, output: str) -> str | None:
        """What dvc.lock has as the digest of an output of any stage."""
        for entry in self._lock.values():
            for item in entry.get("outs", []):
                if item["path"] == output:
                    return str(item["md5"])
        return None

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises
        ------
        UserError
            It is missing.
        """
        content = self.files.read(path)
        if content is None:
            raise UserError(f"{path} is missing: run `dvc repro`")
        return content

    def digest(self, path: str) -> str | None:
        """The digest of a file; of what DVC holds, and need not lie here, as dvc.lock has it."""
        if path == PREPARED.as_posix():
            return self.data_digest
        digest = self.files.digest(path)
        is_cached = any(path in stage.cached for stage in self.stages.values())
        return self.recorded_digest(path) if digest is None and is_cached else digest

    def differences(self, stage_name: str) -> Iterator[str]:
        """In what a stage's record in dvc.lock differs from the files: nothing where its outputs are this state's."""
        stage, entry = self.stages[stage_name], self._lock.get(stage_name)
        if entry is None:
            yield "never run"
            return
        if entry["cmd"] != stage.command:
            yield "its command"
        recorded_params = entry.get("params", {}).get(PARAMS.as_posix(), {})
        for key in stage.params:
            if _normalized(recorded_params.get(key, MISSING)) != _normalized(self.param(key)):
                yield key
        dependencies = {item["path"]: item.get("md5") for item in entry.get("deps", [])}
        raw_images = self.param("data.root")  # of which Git may know nothing
        for path in stage.dependencies:
            if path != raw_images and dependencies.get(path) != self.digest(path):
                yield path
        outputs = {item["path"]: item.get("md5") for item in entry.get("outs", [])}
        for path in stage.outputs:
            if path not in outputs or outputs[path] != self.digest(path):
                yield path

    @cached_property
    def _produced(self) -> set[str]:
        return {path for stage in self.stages.values() for path in stage.outputs}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values, e.g. {"train.beta": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _read_yaml(files: Files, path: str) -> dict[str, Any]:
    content = files.read(path)
    if content is None:
        raise UserError(f"there is no {path}")
    try:
        tree = yaml.load(content, Loader=Yaml12Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no mapping")
    return tree


def _parse_stage(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Stage:
    flat = flatten(params)

    def resolve(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(flat.get(match[1])), text)

    def options(kind: str) -> dict[str, dict[str, Any]]:
        items = (item if isinstance(item, dict) else {item: {}} for item in entry.get(kind, []))
        return {resolve(name): options for item in items for name, options in item.items()}

    outputs = options("outs") | options("metrics") | options("plots")
    return Stage(
        command=resolve(entry["cmd"]),
        params=tuple(options("params")),
        dependencies=tuple(options("deps")),
        outputs=tuple(outputs),
        cached=tuple(path for path, given in outputs.items() if given.get("cache", True)),
    )


def _normalized(value: Any) -> Any:
    """Numbers as floats, since 1 and 1.0 are the same value of a param, and a key that is missing as text."""
    if isinstance(value, Mapping):
        return {key: _normalized(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalized(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return "missing" if value is MISSING else value
