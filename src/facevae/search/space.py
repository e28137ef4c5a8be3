"""The file of a search: what it varies, within which ranges, and which metric it improves."""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from facevae.config.params import explain, invalid_values, parse_params, read_tree
from facevae.config.schema import Count, Finite, Params, PositiveInt, Section, Text
from facevae.errors import UserError
from facevae.tracking.state import flatten

if TYPE_CHECKING:
    from optuna.trial import Trial

NAME = r"[A-Za-z][A-Za-z0-9_-]{0,49}"  # it becomes the name of DVC experiments
CHANGE_THE_LOSS = ("data.", "train.beta", "train.likelihood", "train.binarization")

Overrides = dict[str, Any]  # values by dotted key


class Range(Section):
    """All numbers from `low` to `high`, or the whole ones if both ends are whole."""

    low: int | Finite
    high: int | Finite
    log: bool  # whether each power of ten is equally likely

    def problem(self) -> str:
        """What is wrong with the range, or an empty text."""
        if self.low >= self.high:
            return f"low is {self.low}, high is {self.high}: low must be smaller"
        if self.log and self.low <= 0:
            return f"low is {self.low}: with log it must be above 0"
        return ""

    def ends(self) -> list[int | float]:
        """Values that must be valid."""
        return [self.low, self.high] if self.is_whole else [float(self.low), float(self.high)]

    def suggest(self, trial: "Trial", key: str) -> int | float:
        """Have Optuna choose a value."""
        if self.is_whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Choices(Section):
    """A few values, in no order."""

    choices: list[Any]

    def problem(self) -> str:
        """What is wrong with the choices, or an empty text."""
        texts = list(map(json.dumps, self.choices))
        return "" if len(set(texts)) == len(texts) > 1 else f"choices are {self.choices}: give two or more, each once"

    def ends(self) -> list[Any]:
        """Values that must be valid."""
        return self.choices

    def suggest(self, trial: "Trial", key: str) -> Any:
        """Have Optuna choose a value. It stores no lists, hence JSON."""
        return json.loads(trial.suggest_categorical(key, list(map(json.dumps, self.choices))))


class SearchFile(Section):
    """A search as its file describes it."""

    metric: Text  # as MLflow and metrics/ name it
    direction: Literal["minimize", "maximize"]
    num_trials: PositiveInt
    num_startup_trials: Count  # drawn at random; none is stopped before so many are complete
    stop_after_epochs: PositiveInt | None  # a trial that falls behind is stopped, but never before; None: never
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    fixed: dict[str, Any]  # params of all trials, by dotted key; the others are those of params.yaml
    params: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # what to vary, by dotted key


@dataclass(frozen=True)
class Search:
    """A search that was checked against the params of the project. Its name is that of its file."""

    name: str
    file: SearchFile
    variations: Mapping[str, Range | Choices]
    base: Params

    def suggest(self, trial: "Trial") -> Overrides:
        """The values of a trial."""
        return {key: variation.suggest(trial, key) for key, variation in self.variations.items()}

    def values(self, stored: Mapping[str, Any]) -> Overrides:
        """The values of a trial, from what Optuna stored of them."""
        return {
            key: json.loads(value) if isinstance(self.variations[key], Choices) else value
            for key, value in stored.items()
        }

    def params(self, values: Overrides) -> Params:
        """All params of a trial with these values, or a `UserError` if they do not go together."""
        return parse_params(_changed(self.base, self.file.fixed | values), name=f"trial with {as_text(values)}")


def as_text(values: Overrides) -> str:
    """Values for people to read."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def load_search(path: Path, base: Params) -> Search:
    """Read the file of a search.

    Raises
    ------
    UserError
        The file is missing, or a key or value is unknown, of the wrong type, out of range, or in conflict with `base`,
        the params of the project.
    """
    if not re.fullmatch(NAME, path.stem):
        raise UserError(
            f"{path}: the file's name, {path.stem!r}, names the experiments: use letters, digits, - and _, at most 50"
        )
    file, variations = _parse(path, read_tree(path))
    known = flatten(base.model_dump(mode="json"))
    for section, keys in (("fixed", file.fixed), ("params", file.params)):
        for key in keys:
            if key not in known:
                raise UserError(f"{path}: {section}.{key}: params.yaml has no such key; known: {_near(key, known)}")
    if both := file.fixed.keys() & file.params.keys():
        raise UserError(f"{path}: {', '.join(sorted(both))}: both in fixed and in params; leave it in one of them")
    parse_params(_changed(base, file.fixed), name=f"{path}: params.yaml with `fixed`")
    for key, variation in variations.items():
        for value in variation.ends():
            name = f"{path}: params.{key}: params.yaml with `fixed` and {key}={value}"
            parse_params(_changed(base, file.fixed | {key: value}), name=name)
    changing = [key for key in variations if key.startswith(CHANGE_THE_LOSS)]
    if changing and file.stop_after_epochs is not None:
        raise UserError(
            f"{path}: stop_after_epochs: {file.stop_after_epochs}: the losses of trials with different "
            f"{', '.join(changing)} cannot be compared. Set it to null, so that no trial is stopped"
        )
    return Search(path.stem, file, variations, base)


def _parse(path: Path, tree: object) -> tuple[SearchFile, dict[str, Range | Choices]]:
    """The file and its ranges, each valid on its own."""
    try:
        file = SearchFile.model_validate(tree)
    except ValidationError as error:
        raise invalid_values(str(path), [explain(details, SearchFile) for details in error.errors()]) from error
    variations: dict[str, Range | Choices] = {}
    problems = []
    for key, entry in file.params.items():
        kind = Choices if "choices" in entry else Range
        try:
            variations[key] = kind.model_validate(entry)
        except ValidationError as error:
            problems += _problems(f"params.{key}", error, kind)
        else:
            problem = variations[key].problem()
            problems += [f"params.{key}: {problem}"] if problem else []
    if problems:
        raise invalid_values(str(path), problems)
    return file, variations


def _problems(key: str, error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each value; pydantic has one for each type that the value may have."""
    by_value = {details["loc"][:1]: details for details in error.errors()}
    return [f"{key}.{explain({**details, 'loc': value}, model)}" for value, details in by_value.items()]


def _changed(base: Params, overrides: Overrides) -> dict[str, Any]:
    """Params as a tree of plain values, some of them replaced."""
    tree = copy.deepcopy(base.model_dump(mode="json"))
    for key, value in overrides.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = value
    return tree


def _near(key: str, known: Mapping[str, Any]) -> str:
    """The keys of a section, or all sections."""
    section = key.partition(".")[0] + "."
    return ", ".join([name for name in known if name.startswith(section)] or sorted({k.split(".")[0] for k in known}))
