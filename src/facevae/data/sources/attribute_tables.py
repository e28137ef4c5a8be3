"""Tables that come with images: attribute files in CelebA's own layout or as CSV."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from facevae.errors import UserError


def read_celeba_table(path: Path) -> pd.DataFrame:
    """One of CelebA's tables: its own text layout, or Kaggle's CSV with the file name in the first column.

    Returns
    -------
    pandas.DataFrame
        Index: file names; columns: as in the file.

    Raises
    ------
    UserError
        The file cannot be read as a table, or names an image or a column twice.
    """
    if path.suffix == ".csv":
        return read_csv_table(path)
    # interned, since a table of 40 columns holds the same few words millions of times
    rows = [[sys.intern(cell) for cell in line.split()] for line in _read_text(path).splitlines() if line.strip()]
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit():  # the attribute file begins with the number of its rows
        columns, rows = rows[1] if len(rows) > 1 else [], rows[2:]
    else:
        columns = [f"column_{i}" for i in range(1, len(rows[0]))] if rows else []
    return _to_table(columns, rows, path, separator="blanks")


def read_csv_table(path: Path) -> pd.DataFrame:
    """A CSV table whose first column names the images; see `read_celeba_table`."""
    try:
        reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
        rows = [[row[0], *(sys.intern(cell.strip()) for cell in row[1:])] for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table: {error}") from error
    return _to_table(rows[0][1:] if rows else [], rows[1:], path, separator="commas")


def to_attributes(table: pd.DataFrame, names: Sequence[str], path: Path) -> pd.DataFrame:
    """The rows of `names`, in that order, as 0 and 1.

    Raises
    ------
    UserError
        An image has no row, a value is not one of -1, 0 and 1, or a column has a name that facevae's tables use.
    """
    for reserved in ("name", "split", "attribute"):
        if reserved in table:
            raise UserError(f"{path}: a column is named {reserved!r}, as one of facevae's own tables: rename it")
    rows = rows_of(table, names, path)
    wrong = np.argwhere(~rows.isin(["-1", "0", "1"]).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        value, attribute = rows.iloc[row, column], rows.columns[column]
        raise UserError(f"{path}: {names[row]} has {value!r} for {attribute}; allowed are -1, 0 and 1")
    return (rows == "1").astype("uint8")


def rows_of(table: pd.DataFrame, names: Sequence[str], path: Path) -> pd.DataFrame:
    """The rows of `names`, in that order; a `UserError` says which have none."""
    present = set(table.index)
    missing = [name for name in names if name not in present]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise UserError(
            f"{path} lacks the rows of {len(missing)} of {len(names)} images: {shown}; "
            "add them, or take the images away"
        )
    return table.loc[list(names)]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def _to_table(columns: list[str], rows: list[list[str]], path: Path, separator: str) -> pd.DataFrame:
    """Rows of a name and its values as a table, once they are known to be one."""
    if not columns:
        raise UserError(f"{path} has no columns beside the first: it must have some, separated by {separator}")
    for i, column in enumerate(columns, start=2):
        if not column or not column.isprintable():
            raise UserError(f"{path}: the name of column {i} is {column!r}: give it one that can be printed")
        if column in columns[: i - 2]:
            raise UserError(f"{path}: the column {column!r} stands twice")
    for row in rows:
        if len(row) != len(columns) + 1:
            raise UserError(f"{path}: the row of {row[0]} has {len(row) - 1} values and should have {len(columns)}")
    table = pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=columns)
    twins = table.index[table.index.duplicated()]
    if len(twins):
        raise UserError(f"{path} has more than one row for {twins[0]}")
    return table
