"""Writing results so that a file is either whole or not there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

SIGNIFICANT_DIGITS = 7


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a partial one beside it, which takes its name when it is on the disk.

    A partial file that a kill leaves behind is overwritten by the next attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_path(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file survive a power cut as its content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write numbers by name, rounded to seven significant digits."""
    rounded = {key: round_number(value) if isinstance(value, float) else value for key, value in values.items()}
    write_bytes(path, (json.dumps(rounded, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, numbers to seven significant digits."""
    write_bytes(path, table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n").encode())


def write_csvs(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as `write_csv` does, each under its name."""
    for name, table in tables.items():
        write_csv(folder / name, table)


def round_number(value: float) -> float:
    """The value as it reads in every file and tracker: to seven significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
