"""Read the images of Parquet files row by row, in small batches.

Memory does not grow with the files: a process holds one page of one row group, which may be the whole group.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from facevae.data.image_file import BadImageError, check_file_size, read_image

BATCH_ROWS = 8
BUFFER_BYTES = 2**20
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, MemoryError)  # from pyarrow


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
