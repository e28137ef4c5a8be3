"""Images in Parquet files, as data hubs give them: a column of {bytes, path} or of bytes, and boolean columns.

Rows are read in small batches. Memory does not grow with the files: a process holds one page of one row group, which
may be the whole group.
"""

import io
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from facevae.data.image_file import BadImageError, check_file_size, read_image
from facevae.data.sources.attribute_tables import check_columns
from facevae.data.sources.hints import hint
from facevae.data.sources.listing import NO_PARQUET, check_names, list_files
from facevae.data.sources.source import Source
from facevae.errors import UserError

SUFFIX = ".parquet"
PREFERRED = "image"  # if several columns hold images
BATCH_ROWS = 8
BUFFER_BYTES = 2**20
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, MemoryError)  # from pyarrow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The images in some files; called with a position, it decodes one.

    Attributes
    ----------
    files
        In order.
    starts
        The position of the first row of each file.
    column
        The leaf that holds the bytes, such as "image.bytes".
    """

    files: Sequence[Path]
    starts: Sequence[int]
    column: str

    def __call__(self, position: int) -> Image.Image:
        """Decode one image, or raise a `BadImageError`."""
        index = bisect_right(self.starts, position) - 1
        try:
            content = _open_cursor(self.files[index], self.column).bytes_at(position - self.starts[index])
        except DAMAGE as error:
            raise BadImageError(f"it cannot be read from {self.files[index].name}: {error}") from error
        if content is None:
            raise BadImageError("its row holds no bytes")
        check_file_size(len(content))
        return read_image(io.BytesIO(content))


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
    column, attributes = _columns(_schema(files[0]), files[0])
    names: list[str] = []
    counts: list[int] = []
    tables: list[NDArray[np.uint8]] = []
    for name, file in zip(listing.names, files, strict=True):
        if _columns(schema := _schema(file), file) != (column, attributes):
            raise UserError(f"{file} has other columns than {files[0]}: {', '.join(schema.names)}; give all the same")
        values = _read_booleans(file, attributes)
        counts.append(len(values))
        tables.append(values)
        names.extend(f"{name[: -len(SUFFIX)]}-{row:06d}" for row in range(len(values)))
    if not names:
        raise UserError(f"data.root: the Parquet files under {root} have no rows")
    unused = [f"{field.name} ({field.type})" for field in _schema(files[0]) if field.name not in attributes]
    if len(unused) > 1:  # one of them holds the images
        others = ", ".join(name for name in unused if not column.startswith(name.partition(" (")[0]))
        logger.warning("%s: columns that are not boolean are not used: %s", files[0], others)
    table = pd.DataFrame(np.concatenate(tables), index=names, columns=attributes)[:num_images]
    starts = list(accumulate(counts[:-1], initial=0))
    return Source(names[:num_images], table, Rows(files, starts, column), left_out=listing.left_out)


def _schema(file: Path) -> pa.Schema:
    try:
        return parquet.read_schema(file)
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def _columns(schema: pa.Schema, file: Path) -> tuple[str, list[str]]:
    """The leaf that holds the images' bytes, and the boolean columns."""
    leaves = {field.name: leaf for field in schema if (leaf := _bytes_of(field))}
    if not leaves:
        raise UserError(
            f"{file} has no column of images, which are bytes or a struct of bytes and path, among "
            f"{', '.join(schema.names) or 'its 0 columns'}"
        )
    if len(leaves) > 1 and PREFERRED not in leaves:
        raise UserError(
            f"{file} has several columns of bytes, {', '.join(leaves)}: rename that of images to {PREFERRED}"
        )
    attributes = [field.name for field in schema if pa.types.is_boolean(field.type)]
    check_columns(attributes, file)
    return leaves.get(PREFERRED) or next(iter(leaves.values())), attributes


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


class Cursor:
    """A place in a file. Moving forward within a row group is cheap."""

    def __init__(self, file: Path, column: str) -> None:
        self._file = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        self._column = column
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._groups = list(accumulate(sizes, initial=0))  # first rows
        self._group = -1
        self._start = 0  # row of the file at which the batch begins
        self._values: Any = []  # of the batch
        self._batches: Iterator[Any] = iter(())

    def bytes_at(self, row: int) -> bytes | None:
        """The bytes in a row; None if there are none."""
        group = bisect_right(self._groups, row) - 1
        if group != self._group or row < self._start:
            self._group, self._start, self._values = group, self._groups[group], []
            self._batches = self._file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
            )
        while row >= self._start + len(self._values):
            self._start += len(self._values)
            self._values = []
            if (batch := next(self._batches, None)) is None:
                raise ValueError("a row group ends early")
            self._values = batch.column(0)
        value = self._values[row - self._start].as_py()
        content: bytes | None = value["bytes"] if isinstance(value, dict) else value
        return content


@lru_cache(maxsize=1)
def _open_cursor(file: Path, column: str) -> Cursor:
    return Cursor(file, column)  # one per process; rows are read in order, so one file at a time
