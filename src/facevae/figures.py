"""Arrays to PNG, the same bytes for the same arrays.

Pictures are drawn with matplotlib's object interface; pixels of images stay pixels, enlarged by a whole factor.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from facevae.files import write_bytes

DPI = 100
TILE = 72  # pixels that an image should measure in a picture, or more
GAP = 2  # white pixels between two images
OTHERS = "#b5b5b5"


def save_tiles(
    path: Path,
    tiles: NDArray[np.uint8],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Write a grid of images (rows, columns, height, width, channels) with its labels."""
    sheet, pitch = _sheet(tiles)
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
    _save(figure, path)


def save_losses(path: Path, history: pd.DataFrame) -> None:
    """Write the figure of `draw_losses`."""
    _save(draw_losses(history), path)


def draw_losses(history: pd.DataFrame) -> Figure:
    """Total, reconstruction and KL over the epochs, for training and validation.

    The epoch of the lowest validation loss, whose weights are kept, is marked.
    """
    figure = Figure(figsize=(10.5, 3.4), dpi=DPI, layout="constrained")
    best_row = history.iloc[int(history["validation_loss"].to_numpy().argmin())]
    best_epoch = int(best_row["epoch"])
    panels = {"loss": "Loss", "reconstruction": "Reconstruction", "kl": "KL divergence"}
    for axes, (column, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for split, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            axes.plot(history["epoch"], history[f"{split}_{column}"], color=colour, label=split.capitalize())
        best = float(best_row[f"validation_{column}"])
        axes.axvline(best_epoch, color="0.6", linewidth=1, linestyle=":")
        label = f"Best epoch ({best_epoch}): {best:.1f}"
        axes.plot(best_epoch, best, "o", color="tab:orange", markersize=5, label=label)
        values = history[[f"train_{column}", f"validation_{column}"]]
        if len(history) > 2:  # the first epoch would squeeze all others
            later = values.iloc[1:].to_numpy()
            margin = 0.08 * (later.max() - later.min()) + 1e-9
            axes.set_ylim(later.min() - margin, later.max() + margin)
        axes.set_title(title)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("Mean over images")
    return figure


def save_latent_map(
    path: Path,
    tiles: NDArray[np.uint8],
    points: NDArray[np.float32],
    categories: NDArray[np.int64],
    names: Sequence[str],
    axis_labels: tuple[str, str],
) -> None:
    """Draw the decoded plane beside the scatter of the images' posterior means in it.

    Parameters
    ----------
    tiles
        The decoded plane (rows, columns, height, width, channels), second axis up.
    points
        Coordinates of the images in the plane, (N, 2).
    categories
        For each image the position in `names` that colours it; -1 for none.
    axis_labels
        What the two coordinates are.
    """
    figure = Figure(figsize=(12, 5.6), dpi=DPI, layout="constrained")
    plane, scatter = figure.subplots(1, 2, width_ratios=(1, 1.15))
    plane.imshow(_sheet(tiles)[0], interpolation="antialiased")
    plane.set(xticks=[], yticks=[], title="Decoded plane", xlabel=axis_labels[0], ylabel=axis_labels[1])
    for category in range(-1, len(names)):
        colour = OTHERS if category < 0 else f"C{category}"
        label = "none of these" if category < 0 else names[category]
        chosen = points[categories == category]
        if len(chosen):
            scatter.scatter(*chosen.T, s=6, color=colour, alpha=0.7, linewidths=0, label=label)
    scatter.set(title="Posterior means", xlabel=axis_labels[0], ylabel=axis_labels[1])
    scatter.set_aspect("equal", adjustable="datalim")
    scatter.grid(alpha=0.25)
    scatter.legend(fontsize=8, markerscale=2.5, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def save_note(path: Path, text: str) -> None:
    """Write a picture that says why there is nothing to show."""
    figure = Figure(figsize=(6, 1.2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    _save(figure, path)


def _sheet(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """All tiles on one white sheet (height, width, 3), and the distance from one to the next in pixels."""
    rows, columns, height, width, channels = tiles.shape
    factor = max(1, round(TILE / height))
    tiles = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    height, width = height * factor, width * factor
    sheet = np.full((rows, height + GAP, columns, width + GAP, channels), 255, np.uint8)
    sheet[:, :height, :, :width] = tiles.transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + GAP), columns * (width + GAP), channels)[:-GAP, :-GAP]
    return np.broadcast_to(sheet, (*sheet.shape[:2], 3)) if channels == 1 else sheet, height + GAP


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # no version of matplotlib in the bytes
    write_bytes(path, buffer.getvalue())
