"""Tables that come with images: attributes and splits, in CelebA's text layout or as CSV."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from facevae.data.sources.row_names import find_rows
from facevae.data.sources.zip_images import read_file
from facevae.errors import UserError

VALUES = {  # -1 and 0 both mean no, but never in the same column
    **dict.fromkeys(("1", "1.0", "True", "TRUE", "true"), 1),
    **dict.fromkeys(("0", "0.0", "False", "FALSE", "false"), 0),
    **dict.fromkeys(("-1", "-1.0"), -1),
}


def read_celeba_table(path: Path) -> pd.DataFrame:
    """Read one of CelebA's tables, in its authors' text layout or as Kaggle's CSV.

    Returns
    -------
    pandas.DataFrame
        Text cells. Index: file names; columns: as in the file.

    Raises
    ------
    UserError
        The file cannot be read as a table, or has an image or a column twice.
    """
    if path.suffix == ".csv":
        return read_csv_table(path)
    # interned, because a table of 40 columns repeats the same few words millions of times
    rows = [[sys.intern(cell) for cell in line.split()] for line in _read_text(path).splitlines() if line.strip()]
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit():  # the attribute file starts with its number of rows
        columns, rows = rows[1] if len(rows) > 1 else [], rows[2:]
    else:
        columns = [f"column_{i}" for i in range(1, len(rows[0]))] if rows else []
    return _to_table(columns, rows, path, separator="blanks")


def read_csv_table(path: Path) -> pd.DataFrame:
    """Read a CSV table with file names in its first column; see `read_celeba_table`."""
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
        An image has no row, a value is none of `VALUES`, a column has both -1 and 0, or a name that facevae reserves.
    """
    check_columns(list(table.columns), path)
    positions = find_rows(table.index, names, path)
    attributes = np.empty((len(names), table.shape[1]), np.uint8)
    for column, attribute in enumerate(table.columns):
        codes, found = pd.factorize(table[attribute])
        texts, used = [str(text) for text in found], codes[positions]
        for code in map(int, pd.unique(used)):
            if texts[code] not in VALUES:
                name = names[int(np.argmax(used == code))]
                raise UserError(
                    f"{path}: {name} has {texts[code]!r} for {attribute}; allowed: -1, 0, 1, True and False"
                )
        values = [VALUES.get(text) for text in texts]
        if {-1, 0} <= {*values}:
            raise UserError(
                f"{path}: {attribute} has both -1 and 0, so that one of them may mean unknown: leave two values, or "
                "remove the column"
            )
        attributes[:, column] = np.array([value == 1 for value in values])[used]
    return pd.DataFrame(attributes, index=list(names), columns=table.columns)


def check_columns(columns: Sequence[str], path: Path) -> None:
    """Raise a `UserError` if attributes cannot be called like these columns."""
    check_spelling(columns, path)
    for reserved in ("name", "split", "attribute"):
        if reserved in columns:
            raise UserError(f"{path}: a column is named {reserved!r}, a name that facevae's tables use: rename it")


def check_spelling(columns: Sequence[str], path: Path) -> None:
    """Raise a `UserError` if the name of a column is not printable, or appears twice."""
    for i, column in enumerate(columns):
        if not column or not column.isprintable():
            raise UserError(f"{path}: the name of column {i + 2} is {column!r}: give it a printable name")
        if column in columns[:i]:
            raise UserError(f"{path}: the column {column!r} appears twice")


def rows_of(table: pd.DataFrame, names: Sequence[str], path: Path) -> pd.DataFrame:
    """The rows of `names`, in that order, under these names; see `find_rows` for errors."""
    return table.iloc[find_rows(table.index, names, path)].set_axis(list(names))


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def _to_table(columns: list[str], rows: list[list[str]], path: Path, separator: str) -> pd.DataFrame:
    """A table from rows that each hold a name and its values, after checking their shape and names."""
    if not columns:
        raise UserError(f"{path} has only one column: add the others, separated by {separator}")
    check_spelling(columns, path)
    for row in rows:
        if len(row) != len(columns) + 1:
            raise UserError(f"{path}: the row of {row[0]} has {len(row) - 1} value(s) and should have {len(columns)}")
    table = pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=columns)
    twins = table.index[table.index.duplicated()]
    if len(twins):
        raise UserError(f"{path} has more than one row for {twins[0]}")
    return table
