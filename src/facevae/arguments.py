"""Check the arguments of the Python API. A `UserError` names the argument, its value and the way out."""

from collections.abc import Mapping, Sequence
from numbers import Real
from operator import index
from typing import SupportsIndex, TypeVar

from facevae.errors import UserError

Choice = TypeVar("Choice")

BEST = "best"
MAX_NUMBER = 2**31 - 1
MAX_SEED = 2**32 - 1
MAX_TEMPERATURE = 2.0
MAX_STRENGTH = 1000.0  # far beyond any face, and far below what overflows float32


def choose(name: str, wanted: str, known: Mapping[str, Choice], best: str) -> Choice:
    """The entry called `wanted`; for "best" the entry called `best`."""
    if wanted not in (BEST, *known):
        raise UserError(f"{name}: {wanted!r} is unknown; use one of {', '.join([BEST, *known])}")
    return known[best if wanted == BEST else wanted]


def whole_number(name: str, value: SupportsIndex, *, minimum: int, maximum: int = MAX_NUMBER) -> int:
    """A whole number within its range."""
    try:
        number = index(value)
    except TypeError as error:
        raise UserError(f"{name}: {value!r} is not a whole number") from error
    if not minimum <= number <= maximum:
        raise UserError(f"{name}: {number} is out of range; use {minimum} to {maximum}")
    return number


def checked_temperature(value: float) -> float:
    """A temperature within its range."""
    if not isinstance(value, Real) or not 0 <= value <= MAX_TEMPERATURE:  # NaN is not <=
        raise UserError(f"temperature: {value!r} is out of range; use a number from 0 to {MAX_TEMPERATURE:g}")
    return float(value)


def names_of(name: str, attributes: Sequence[str]) -> tuple[str, ...]:
    """Names of attributes as a tuple."""
    if isinstance(attributes, str):
        raise UserError(f"{name}: {attributes!r} is a single string; use a list of attributes")
    return tuple(attributes)


def signed_strengths(add: Mapping[str, float], remove: Mapping[str, float]) -> dict[str, float]:
    """Signed strength by attribute: what is removed has its sign turned."""
    for name, strengths in (("add", add), ("remove", remove)):
        if not isinstance(strengths, Mapping):
            raise UserError(f"edit: {name} is {strengths!r}; use strengths by attribute, such as {{'Smiling': 1.0}}")
    if not add and not remove:
        raise UserError("edit: no attribute to add or remove; name at least one")
    if both := add.keys() & remove.keys():
        raise UserError(f"edit: {', '.join(sorted(both))} is both added and removed; choose one")
    for attribute, strength in [*add.items(), *remove.items()]:
        if not isinstance(strength, Real) or not abs(strength) <= MAX_STRENGTH:  # NaN is not <=
            raise UserError(
                f"edit: strength {strength!r} of {attribute}; use a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
            )
    return {**add, **{attribute: -strength for attribute, strength in remove.items()}}
