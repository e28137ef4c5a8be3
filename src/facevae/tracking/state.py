"""A state of the pipeline: its params, code and data, their fingerprint, and what dvc.lock recorded of the last run."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from facevae.config.paths import PARAMS, PREPARED
from facevae.config.yaml12 import Yaml12Loader
from facevae.errors import UserError
from facevae.tracking.project_files import Files, digest_of

SOURCE_STAGE = "prepare"  # the digest of its output stands for its code and params


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, with all `${...}` replaced."""

    command: str | list[str]
    params: tuple[str, ...]  # dotted keys, or whole sections
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: tuple[str, ...]  # the outputs that DVC keeps; Git keeps the others


class State:
    """The pipeline's files in the work tree or in a commit.

    Parameters
    ----------
    files
        The project's root. A `UserError` names the file there that is missing or damaged.
    data_digest
        DVC's digest of the prepared set; None: the one in dvc.lock.
    """

    def __init__(self, files: Files, data_digest: str | None = None) -> None:
        self.files = files
        self.params = _read_yaml(files, PARAMS.as_posix())
        entries = _read_yaml(files, "dvc.yaml").get("stages") or {}
        lock = _read_yaml(files, "dvc.lock").get("stages") or {} if (files / "dvc.lock").exists() else {}
        try:
            own = {name: entry for name, entry in entries.items() if "cmd" in entry}  # foreach and matrix have none
            self.stages = {name: _parse_stage(entry, self.params) for name, entry in own.items()}
            self._recorded = {name: _parse_record(entry) for name, entry in lock.items()}
        except (TypeError, AttributeError, KeyError) as error:
            raise UserError(f"dvc.yaml or dvc.lock does not have DVC's format: {error!r}") from error
        if SOURCE_STAGE not in self.stages:
            raise UserError(f"dvc.yaml has no stage {SOURCE_STAGE}")
        digest = data_digest or self.recorded_digest(PREPARED.as_posix())
        if digest is None:
            raise UserError(f"dvc.lock has no digest of {PREPARED}: run `dvc repro`")
        self.data_digest = digest

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that determines metrics and figures: the data, and params and code of the stages after it."""
        produced = {path for stage in self.stages.values() for path in stage.outputs}
        stages = {
            name: {
                "command": stage.command,
                "params": {key: _normalized(self.param(key)) for key in stage.params},
                "code": {path: digest_of(self.files / path) for path in stage.dependencies if path not in produced},
            }
            for name, stage in self.stages.items()
            if name != SOURCE_STAGE
        }
        content = json.dumps({"data": self.data_digest, "stages": stages}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def experiment(self) -> str:
        """The MLflow experiment of its run."""
        experiment = self.param("tracking.experiment")
        if not isinstance(experiment, str):
            raise UserError(f"{PARAMS}: tracking.experiment must be a name")
        return experiment

    @property
    def default_name(self) -> str:
        """The name of its run, unless a DVC experiment gives it another one."""
        return f"{self.param('data.source')}-{self.fingerprint[:8]}"

    def param(self, key: str) -> object:
        """The value of a dotted key or a whole section, or None."""
        value: Any = self.params
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def read(self, path: str) -> bytes:
        """The content of a file, or a `UserError` if it is missing."""
        if not (self.files / path).is_file():
            raise UserError(f"{path} is missing: run `dvc repro`")
        return (self.files / path).read_bytes()

    def recorded_digest(self, output: str) -> str | None:
        """The digest in dvc.lock of an output of any stage."""
        key = "outs", output
        return next((str(record[key]) for record in self._recorded.values() if record.get(key)), None)

    def digest(self, path: str) -> str | None:
        """The digest of a file or folder; dvc.lock's, if DVC keeps it and it has not been checked out."""
        if path == PREPARED.as_posix():
            return self.data_digest
        digest = digest_of(self.files / path)
        is_cached = any(path in stage.cached for stage in self.stages.values())
        return self.recorded_digest(path) if digest is None and is_cached else digest

    def differences(self, stage_name: str) -> list[str]:
        """What changed since dvc.lock recorded a stage. Empty if the stage's outputs belong to this state."""
        if stage_name not in self._recorded:
            return ["never run"]
        stage, recorded = self.stages[stage_name], self._recorded[stage_name]
        raw_images = self.param("data.root")  # Git may know nothing of them
        now: dict[tuple[str, str], object] = {("cmd", "its command"): stage.command}
        now |= {("params", key): _normalized(self.param(key)) for key in stage.params}
        now |= {("deps", path): self.digest(path) for path in stage.dependencies if path != raw_images}
        now |= {("outs", path): self.digest(path) for path in stage.outputs}
        return [key[1] for key, value in now.items() if key not in recorded or recorded[key] != value]

    def needs(self, stage_name: str) -> set[str]:
        """The stages whose outputs a stage reads."""
        read = set(self.stages[stage_name].dependencies)
        return {name for name, stage in self.stages.items() if read.intersection(stage.outputs)}

    def upstream(self, stage_name: str) -> set[str]:
        """All stages that must run before a stage."""
        read = self.needs(stage_name)
        return read.union(*(self.upstream(name) for name in read))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values, e.g. {"train.beta": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _read_yaml(files: Files, path: str) -> dict[str, Any]:
    if not (files / path).is_file():
        raise UserError(f"{path} is missing: run this in the root of a clone")
    try:
        tree = yaml.load((files / path).read_bytes(), Loader=Yaml12Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a mapping")
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


def _parse_record(entry: Mapping[str, Any]) -> dict[tuple[str, str], object]:
    """A stage of dvc.lock: its command, the values of its params and the digests of its files, by kind and name."""
    params = (entry.get("params") or {}).get(PARAMS.as_posix()) or {}
    record: dict[tuple[str, str], object] = {("cmd", "its command"): entry["cmd"]}
    record |= {("params", key): _normalized(value) for key, value in params.items()}
    for kind in ("deps", "outs"):
        record |= {(kind, item["path"]): item.get("md5") for item in entry.get(kind) or []}
    return record


def _normalized(value: object) -> object:
    """A param's value with all numbers as floats, since 1 and 1.0 are equal."""
    return json.loads(json.dumps(value), parse_int=float)
