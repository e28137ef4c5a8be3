"""Images in Parquet files, as data hubs give them: a column of {bytes, path} or of bytes, and boolean columns."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from facevae.data.sources.attribute_tables import check_columns
from facevae.data.sources.hints import hint
from facevae.data.sources.listing import NO_PARQUET, check_names, list_files
from facevae.data.sources.parquet_rows import DAMAGE, Rows
from facevae.data.sources.source import Source
from facevae.errors import UserError

SUFFIX = ".parquet"
PREFERRED = "image"  # if several columns hold images

logger = logging.getLogger(__name__)


def open_parquet(root: Path, num_images: int | None) -> Source:
    """The first `num_images` rows of all Parquet files below `root`, sorted by name; None takes all.

    Boolean columns are attributes. Columns of other types are not used, which is logged.

    Raises
    ------
    UserError
        There is no such file, one is damaged, the files differ in their columns, there is no column of images or more
        than one, or a boolean value is missing.
    """
    listing = list_files(root, lambda entry: None if entry.name.lower().endswith(SUFFIX) else NO_PARQUET)
    check_names(root, listing.names)
    files = [root / name for name in listing.names]
    if not files:
        raise UserError(f"data.root: {root} holds no *{SUFFIX} file.{hint(root, 'parquet')}")
    columns = _columns(files[0])
    names: list[str] = []
    starts: list[int] = []
    tables: list[NDArray[np.uint8]] = []
    for name, file in zip(listing.names, files, strict=True):
        if (other := _columns(file)) != columns:
            raise UserError(
                f"{file} has other columns, {other.all()}, than {files[0]}, {columns.all()}: give all the same"
            )
        values = _read_booleans(file, columns.attributes)
        starts.append(len(names))
        tables.append(values)
        names.extend(f"{name[: -len(SUFFIX)]}-{row:06d}" for row in range(len(values)))
    if not names:
        raise UserError(f"data.root: the Parquet files under {root} have no rows")
    if columns.unused:
        logger.warning("%s: only boolean columns are attributes, not %s", files[0], ", ".join(columns.unused))
    table = pd.DataFrame(np.concatenate(tables), index=names, columns=list(columns.attributes))[:num_images]
    return Source(names[:num_images], table, Rows(files, starts, columns.leaf), left_out=listing.left_out)


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are for: the leaf that holds the images' bytes, attributes, and others."""

    leaf: str
    attributes: tuple[str, ...]
    unused: tuple[str, ...]

    def all(self) -> str:
        """The columns in words."""
        return ", ".join((self.leaf, *self.attributes, *self.unused))


def _columns(file: Path) -> Columns:
    try:
        schema = parquet.read_schema(file)
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
    leaves = {field.name: leaf for field in schema if (leaf := _bytes_of(field))}
    if not leaves:
        raise UserError(
            f"{file} has no column of images, which are bytes or a struct of bytes and path, among "
            f"{', '.join(schema.names) or 'its 0 columns'}"
        )
    if len(leaves) > 1 and PREFERRED not in leaves:
        raise UserError(
            f"{file} has several columns of bytes, {', '.join(leaves)}: rename that of the images to {PREFERRED}"
        )
    images = PREFERRED if PREFERRED in leaves else next(iter(leaves))
    attributes = [field.name for field in schema if pa.types.is_boolean(field.type)]
    check_columns(attributes, file)
    unused = [f"{field.name} ({field.type})" for field in schema if field.name not in (images, *attributes)]
    return Columns(leaves[images], tuple(attributes), tuple(unused))


def _bytes_of(field: pa.Field) -> str | None:
    if _is_bytes(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and any(part.name == "bytes" and _is_bytes(part.type) for part in field.type):
        return f"{field.name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _read_booleans(file: Path, attributes: Sequence[str]) -> NDArray[np.uint8]:
    """The values (rows, attributes) of boolean columns."""
    try:
        table = parquet.ParquetFile(file).read(columns=list(attributes), use_threads=False)
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
    values = np.empty((table.num_rows, len(attributes)), np.uint8)
    for i, attribute in enumerate(attributes):
        if table[attribute].null_count:
            row = table[attribute].is_null().index(True).as_py()
            raise UserError(f"{file}: row {row} has no value for {attribute}: leave the row or the column out")
        values[:, i] = table[attribute].to_numpy()
    return values
