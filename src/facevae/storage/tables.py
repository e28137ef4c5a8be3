"""Metrics as JSON and tables as CSV: written to seven significant digits, and checked when they are read again."""

import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from facevae.errors import UserError
from facevae.storage.atomic import write_bytes

SIGNIFICANT_DIGITS = 7


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write numbers by name, rounded to seven significant digits.

    Raises
    ------
    UserError
        One of them is not finite.
    """
    require_finite(values, path)
    rounded = {key: round_number(value) if isinstance(value, float) else value for key, value in values.items()}
    write_bytes(path, (json.dumps(rounded, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, numbers to seven significant digits."""
    write_bytes(path, table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n").encode())


def write_csvs(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as `write_csv` does, each under its name."""
    for name, table in tables.items():
        write_csv(folder / name, table)


def read_csv(
    path: Path, *, numbers: Collection[str], text: Collection[str] = (), stage: str, may_be_empty: bool = False
) -> pd.DataFrame:
    """Read a table that `write_csv` wrote, as `parse_csv` does."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro {stage}`") from None
    return parse_csv(content, path, numbers=numbers, text=text, stage=stage, may_be_empty=may_be_empty)


def parse_csv(
    content: bytes,
    path: Path,
    *,
    numbers: Collection[str],
    text: Collection[str] = (),
    stage: str,
    may_be_empty: bool = False,
) -> pd.DataFrame:
    """The table in the content of a file that a stage wrote by `write_csv`.

    Parameters
    ----------
    numbers, text
        Columns that there must be. Those that are not `text` hold numbers, and those of `numbers` finite ones.

    Raises
    ------
    UserError
        It is cut off, is no such table, or has no rows.
    """
    remedy = f"run `dvc repro --force {stage}`"
    try:
        types = dict.fromkeys(text, str)  # a name may read like a number, or like none
        table = pd.read_csv(io.BytesIO(content), dtype=types, keep_default_na=False, na_values=[""])
    except ValueError as error:  # of any kind: pandas' own, or of the encoding
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not content.endswith(b"\n"):
        raise UserError(f"{path} is damaged, since its last line is cut off: {remedy}")
    if missing := sorted({*numbers, *text} - set(table.columns)):
        raise UserError(f"{path} is not what stage {stage} writes: it has no column {', '.join(missing)}; {remedy}")
    if table.empty and not may_be_empty:
        raise UserError(f"{path} is damaged, since it has no rows: {remedy}")
    for column in table.columns.difference(list(text)) if len(table) else ():
        values = table[column]
        if not pd.api.types.is_numeric_dtype(values) or (column in numbers and not np.isfinite(values).all()):
            raise UserError(f"{path} is damaged: not all values of {column} are numbers; {remedy}")
    return table


def require_finite(values: Mapping[str, Any], where: object) -> None:
    """Raise a `UserError` where one of several results by name is no number."""
    names = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if names:
        raise UserError(
            f"{where}: {', '.join(names)} would be {values[names[0]]}, which is no result: the model is unstable; "
            "train it with a lower train.learning_rate or with train.precision float32"
        )


def round_number(value: float) -> float:
    """The value as it reads in every file and tracker: to seven significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
