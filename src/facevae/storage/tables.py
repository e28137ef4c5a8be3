"""Metrics as JSON and tables as CSV: written with seven significant digits, and checked when read."""

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
    """Write named numbers, rounded to seven significant digits.

    Raises
    ------
    UserError
        A number is not finite.
    """
    require_finite(values, path)
    rounded = {key: round_number(value) if isinstance(value, float) else value for key, value in values.items()}
    write_bytes(path, (json.dumps(rounded, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, with seven significant digits."""
    write_bytes(path, table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n").encode())


def write_csvs(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write several tables with `write_csv`; the keys are file names."""
    for name, table in tables.items():
        write_csv(folder / name, table)


def read_csv(
    path: Path, *, numbers: Collection[str], text: Collection[str] = (), stage: str, may_be_empty: bool = False
) -> pd.DataFrame:
    """Read a table that `write_csv` wrote; see `parse_csv`."""
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
    """The table in a file's content, which a stage wrote with `write_csv`.

    Parameters
    ----------
    path, stage
        For errors: the file, and the stage to run again.
    numbers, text
        Required columns. Every column not in `text` must hold numbers, and those in `numbers` finite ones.

    Raises
    ------
    UserError
        The content is cut off, is not such a table, or has no rows and may not be empty.
    """
    remedy = f"run `dvc repro --force {stage}`"
    try:
        types = dict.fromkeys(text, str)  # an attribute may be called "1" or "NA"
        table = pd.read_csv(io.BytesIO(content), dtype=types, keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas' own errors and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not content.endswith(b"\n"):
        raise UserError(f"{path} is damaged: its last line is cut off; {remedy}")
    if missing := sorted({*numbers, *text} - set(table.columns)):
        raise UserError(f"{path} is not a table of stage {stage}: it has no column {', '.join(missing)}; {remedy}")
    if table.empty and not may_be_empty:
        raise UserError(f"{path} is damaged: it has no rows; {remedy}")
    for column in table.columns.difference(list(text)) if len(table) else ():
        values = table[column]
        if not pd.api.types.is_numeric_dtype(values) or (column in numbers and not np.isfinite(values).all()):
            raise UserError(f"{path} is damaged: not all values of {column} are numbers; {remedy}")
    return table


def require_finite(values: Mapping[str, Any], where: object) -> None:
    """Raise a `UserError` if a named result is infinite or not a number; `where` begins the message."""
    names = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if names:
        raise UserError(
            f"{where}: {', '.join(names)} would be {values[names[0]]}, because the model is unstable: train it with "
            "a lower train.learning_rate or with train.precision float32"
        )


def round_number(value: float) -> float:
    """The value with seven significant digits, as in every file and in MLflow."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
