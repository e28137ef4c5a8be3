"""Write arrays and matplotlib figures as PNG; the same input gives the same bytes.

Images keep their exact pixels, enlarged by a whole factor.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facevae.errors import UserError
from facevae.figures.settings import Figure, FigureCanvasAgg
from facevae.storage.atomic import write_bytes
from facevae.storage.sheet import sheet_of

DPI = 100
MAX_SIDE = 65_000  # pixels; matplotlib draws less than 2^16, margins included


def save_tiles(
    path: Path,
    tiles: NDArray[np.uint8],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Write a grid of images (rows, columns, height, width, channels) with labels.

    Raises
    ------
    UserError
        The picture would be too large for matplotlib.
    """
    sheet, pitch = sheet_of(tiles)
    if max(sheet.shape) > MAX_SIDE:
        raise UserError(
            f"{path} would be {sheet.shape[1]} x {sheet.shape[0]} pixels, but a side can have at most {MAX_SIDE}. "
            "Show fewer images"
        )
    left = 0.2 + 0.075 * max((len(label) for label in row_labels), default=0)  # inches
    top, other = 0.15 + 0.2 * bool(column_labels), 0.1
    height, width = sheet.shape[0] / DPI, sheet.shape[1] / DPI
    figure = Figure(figsize=(left + width + other, top + height + other), dpi=DPI)
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, other / total_height, width / total_width, height / total_height)
    axes = figure.add_axes(box)
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
    axes.set_yticks([pitch * (row + 0.5) for row in range(len(row_labels))], row_labels)
    axes.set_xticks([pitch * (column + 0.5) for column in range(len(column_labels))], column_labels)
    save_figure(figure, path)


def save_note(path: Path, text: str) -> None:
    """Write a picture of one line of text, which says why there is nothing to show."""
    figure = Figure(figsize=(7.2, 1.2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # leave out matplotlib's version
    write_bytes(path, buffer.getvalue())
