"""Tables that come with images: attribute files in CelebA's own layout or as CSV."""

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
        The file cannot be read as a table, or names an image twice.
    """
    if path.suffix == ".csv":
        return read_csv_table(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: {error}") from error
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit():  # the attribute file begins with the number of its rows
        rows = rows[1:]
        columns, rows = rows[0] if rows else [], rows[1:]
    else:
        columns = [f"column_{i}" for i in range(1, len(rows[0]))] if rows else []
    for row in rows:
        if len(row) != len(columns) + 1:
            raise UserError(f"{path}: the row of {row[0]} has {len(row) - 1} values and should have {len(columns)}")
    table = pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=columns)
    return _without_twins(table, path)


def read_csv_table(path: Path) -> pd.DataFrame:
    """A CSV table whose first column names the images; see `read_celeba_table`."""
    try:
        table = pd.read_csv(path, index_col=0, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path} is not a CSV table: {error}") from error
    return _without_twins(table, path)


def to_attributes(table: pd.DataFrame, names: Sequence[str], path: Path) -> pd.DataFrame:
    """The rows of `names`, in that order, as 0 and 1.

    Raises
    ------
    UserError
        An image has no row, or a value is not one of -1, 0 and 1.
    """
    rows = rows_of(table, names, path)
    values = rows.replace({"-1": "0"}) if rows.size else rows
    wrong = np.argwhere(~values.isin(["0", "1"]).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        value, attribute = rows.iloc[row, column], rows.columns[column]
        raise UserError(f"{path}: {names[row]} has {value!r} for {attribute}; allowed are -1, 0 and 1")
    return values.astype("uint8")


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


def _without_twins(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    twins = table.index[table.index.duplicated()]
    if len(twins):
        raise UserError(f"{path} has more than one row for {twins[0]}")
    return table
