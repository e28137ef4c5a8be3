"""A state of the pipeline: its params, code and data, the fingerprint of these, and what dvc.lock knows of it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import yaml

from facevae.config.paths import PARAMS, PREPARED
from facevae.config.yaml12 import Yaml12Loader
from facevae.errors import UserError
from facevae.tracking.project_files import Files

SOURCE_STAGE = "prepare"  # the digest of its output speaks for its code and params
MISSING = object()


@dataclass(frozen=True)
class Stage:
    """An entry of dvc.yaml: paths, and keys of the params."""

    command: str | list[str]
    params: tuple[str, ...]
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: tuple[str, ...]  # the outputs that DVC holds; Git has the others


@dataclass(frozen=True)
class _LockedStage:
    """An entry of dvc.lock: what a stage was run with, and the digests of what it read and wrote."""

    command: object
    params: Mapping[str, Any]
    dependencies: Mapping[str, str | None]
    outputs: Mapping[str, str | None]

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Self:
        """Read it from plain values."""
        digests = {kind: {item["path"]: item.get("md5") for item in entry.get(kind) or []} for kind in ("deps", "outs")}
        params = (entry.get("params") or {}).get(PARAMS.as_posix()) or {}
        return cls(entry["cmd"], params, digests["deps"], digests["outs"])


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
        entries = _read_yaml(files, "dvc.yaml").get("stages") or {}
        lock = _read_yaml(files, "dvc.lock").get("stages") or {} if files.read("dvc.lock") else {}
        try:
            own = {name: entry for name, entry in entries.items() if "cmd" in entry}  # foreach and matrix have none
            self.stages = {name: _parse_stage(entry, self.params) for name, entry in own.items()}
            self._lock = {name: _LockedStage.parse(entry) for name, entry in lock.items()}
        except (TypeError, AttributeError, KeyError) as error:
            raise UserError(f"dvc.yaml or dvc.lock is not as DVC writes it: {error!r}") from error
        if SOURCE_STAGE not in self.stages:
            raise UserError(f"dvc.yaml has no stage {SOURCE_STAGE}")
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
        experiment = self.param("tracking.experiment")
        if not isinstance(experiment, str):
            raise UserError(f"{PARAMS} has no text at tracking.experiment")
        return experiment

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
        return next((entry.outputs[output] for entry in self._lock.values() if output in entry.outputs), None)

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
        if entry.command != stage.command:
            yield "its command"
        for key in stage.params:
            if _normalized(entry.params.get(key, MISSING)) != _normalized(self.param(key)):
                yield key
        raw_images = self.param("data.root")  # of which Git may know nothing
        for path in stage.dependencies:
            if path != raw_images and entry.dependencies.get(path) != self.digest(path):
                yield path
        for path in stage.outputs:
            if path not in entry.outputs or entry.outputs[path] != self.digest(path):
                yield path

    def needs(self, stage_name: str) -> set[str]:
        """The stages whose outputs a stage reads."""
        read = set(self.stages[stage_name].dependencies)
        return {name for name, stage in self.stages.items() if read.intersection(stage.outputs)}

    def upstream(self, stage_name: str) -> set[str]:
        """The stages on whose outputs a stage depends, through however many others."""
        read = self.needs(stage_name)
        return read.union(*(self.upstream(name) for name in read))

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
        items = (item if isinstance(item, dict) else {item: {}} for item in entry.get(kind) or [])
        return {resolve(name): given or {} for item in items for name, given in item.items()}

    outputs = options("outs") | options("metrics") | options("plots")
    command = entry["cmd"]
    return Stage(
        command=[resolve(line) for line in command] if isinstance(command, list) else resolve(command),
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
