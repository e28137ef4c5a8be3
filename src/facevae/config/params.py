"""The sole reader of params.yaml."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from facevae.config.checks import find_problems
from facevae.config.paths import PARAMS
from facevae.config.schema import Params
from facevae.config.yaml12 import Yaml12Loader
from facevae.errors import UserError

MAX_LISTED = 20  # invalid values that one error lists

_shown = reprlib.Repr()  # shortened, because with aliases a few lines of YAML make a tree of billions of values
_shown.maxlevel = 2
_shown.maxlist = _shown.maxdict = 20
_shown.maxstring = _shown.maxlong = 100


def load_params(path: Path = PARAMS) -> Params:
    """Read and check the parameters.

    Raises
    ------
    UserError
        The file is missing or is not YAML, or keys are unknown, missing, of the wrong type, out of range or in
        conflict with each other. The message lists all of them, each with its value and what is allowed.
    """
    return parse_params(read_tree(path), name=str(path))


def read_tree(path: Path) -> object:
    """The plain values of a YAML file, or a `UserError` if it is missing or is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Yaml12Loader)
    except FileNotFoundError:
        raise UserError(f"{path} is not in {Path.cwd()}: run this in the root folder of the project") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: a section may hold only values and lists of values") from None


def parse_params(tree: object, name: str) -> Params:
    """Check a tree of plain values; errors call it `name`, the file it came from."""
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        problems = [explain(details, Params) for details in error.errors()]
    else:
        problems = find_problems(params)
        if not problems:
            return params
    raise invalid_values(name, problems)


def invalid_values(name: str, problems: Sequence[str]) -> UserError:
    """An error that lists what is wrong with a file."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    lines = [f"  {line}" for line in [*problems[:MAX_LISTED], *more]]
    return UserError("\n".join([f"{name} has {len(problems)} invalid value(s):", *lines]))


def explain(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One line for an error of pydantic in a tree of `model`: the key, the value and what is allowed."""
    key = ".".join(str(part) for part in details["loc"]) or "the whole file"
    if details["type"] == "missing":
        return f"{key}: missing; the file must name every key"
    if details["type"] in {"extra_forbidden", "invalid_key"}:
        allowed = ", ".join(_section_at(details["loc"][:-1], model).model_fields)
        return f"{key}: {_shown.repr(details['input'])} is an unknown key; allowed here: {allowed}"
    message = re.sub("^(Input|String|Tuple) should", "must", details["msg"]).removeprefix("Value error, ")
    message = message.replace("valid dictionary or instance of", "mapping like").replace(" after validation", "")
    return f"{key}: {_shown.repr(details['input'])} {message}"


def _section_at(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel]:
    section = model
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    return section
