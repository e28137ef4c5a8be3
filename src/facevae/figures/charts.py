"""Draw the numbers of a run as PNG: curves, bars, scatter plots and matrices."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from facevae.figures.png import DPI, save_figure
from facevae.figures.settings import Figure, MaxNLocator, Rectangle
from facevae.storage.sheet import sheet_of

OTHERS = "#b5b5b5"
LOSSES = {"loss": "Loss", "reconstruction": "Reconstruction", "kl": "KL divergence"}
HISTORY_COLUMNS = ("epoch", *(f"{split}_{loss}" for split in ("train", "validation") for loss in LOSSES))
LATENT_COLUMNS = ("rank", "kl_nats", "aggregate_mean", "aggregate_variance")
EDIT_COLUMNS = ("strength", "success", "success_low", "success_high", "leakage")


def save_losses(path: Path, history: pd.DataFrame) -> None:
    """Write the figure of `draw_losses`."""
    save_figure(draw_losses(history), path)


def draw_losses(history: pd.DataFrame) -> Figure:
    """Plot the loss and its two terms over the epochs, for training and validation.

    The best epoch, whose weights are kept, is marked: it has the lowest validation loss. Sharpening, which has further
    losses, continues from its weights.
    """
    figure = Figure(figsize=(10.5, 3.4), dpi=DPI, layout="constrained")
    plain = history[history["discriminator_loss"].isna()] if "discriminator_loss" in history else history
    best_row = plain.iloc[int(plain["validation_loss"].to_numpy().argmin())]
    best_epoch = int(best_row["epoch"])
    for axes, (column, title) in zip(figure.subplots(1, 3), LOSSES.items(), strict=True):
        for split, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            axes.plot(history["epoch"], history[f"{split}_{column}"], color=colour, label=split.capitalize())
        best = float(best_row[f"validation_{column}"])
        axes.axvline(best_epoch, color="0.6", linewidth=1, linestyle=":")
        label = f"Best epoch ({best_epoch}): {best:.1f}"
        axes.plot(best_epoch, best, "o", color="tab:orange", markersize=5, label=label)
        values = history[[f"train_{column}", f"validation_{column}"]]
        if len(history) > 2:  # the first epoch would flatten all others
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
    """Draw a decoded plane of the latent space beside a scatter plot of the images' posterior means.

    Parameters
    ----------
    tiles
        The decoded plane (rows, columns, height, width, channels), second axis up.
    points
        Coordinates of the images in the plane, (N, 2).
    categories
        Index into `names` for each image, which decides its colour; -1 for none. Shape (N,).
    axis_labels
        Names of the two coordinates.
    """
    figure = Figure(figsize=(12, 5.6), dpi=DPI, layout="constrained")
    plane, scatter = figure.subplots(1, 2, width_ratios=(1, 1.15))
    plane.imshow(sheet_of(tiles)[0], interpolation="antialiased")
    plane.set(xticks=[], yticks=[], title="Decoded plane", xlabel=axis_labels[0], ylabel=axis_labels[1])
    for category in range(-1, len(names)):
        colour = OTHERS if category < 0 else f"C{category}"
        label = "other" if category < 0 else names[category]
        chosen = points[categories == category]
        if len(chosen):
            scatter.scatter(*chosen.T, s=6, color=colour, alpha=0.7, linewidths=0, label=label)
    scatter.set(title="Posterior means", xlabel=axis_labels[0], ylabel=axis_labels[1])
    scatter.set_aspect("equal", adjustable="datalim")
    scatter.grid(alpha=0.25)
    scatter.legend(fontsize=8, markerscale=2.5, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def save_latent_health(path: Path, table: pd.DataFrame, draws: NDArray[np.float32]) -> None:
    """Draw the KL and the aggregate moments of each latent dimension, and compare drawn latents with the prior.

    Parameters
    ----------
    table
        The result of `evaluate.latent.latent_table`.
    draws
        One latent from the posterior of each image, (N, latent_dim).
    """
    figure = Figure(figsize=(12, 3.6), dpi=DPI, layout="constrained")
    kl, moments, density = figure.subplots(1, 3)
    kl.bar(table["rank"], table["kl_nats"], width=1, color="tab:blue")
    kl.set(title=f"KL divergence: {table['kl_nats'].sum():.1f} nats", ylabel="nats")
    for column, colour in (("aggregate_mean", "tab:blue"), ("aggregate_variance", "tab:orange")):
        moments.plot(table["rank"], table[column], ".", color=colour, label=column.removeprefix("aggregate_"))
    for level, colour in ((0, "tab:blue"), (1, "tab:orange")):
        moments.axhline(level, color=colour, linewidth=1, linestyle=":")
    moments.set(title="Aggregate posterior (dotted: prior)")
    moments.legend(fontsize=8)
    for axes in (kl, moments):
        axes.set_xlabel("Latent dimensions, sorted by KL")
    limit = max(4.0, float(np.quantile(np.abs(draws), 0.999)))
    values = np.linspace(-limit, limit, 161)
    density.hist(draws.ravel(), bins=80, range=(-limit, limit), density=True, color="tab:blue", label="all dimensions")
    density.plot(values, np.exp(-0.5 * values**2) / np.sqrt(2 * np.pi), color="tab:orange", label="prior")
    density.set(title="Latents of held-out images", xlabel="value", ylabel="density")
    density.legend(fontsize=8)
    save_figure(figure, path)


def save_strengths(path: Path, table: pd.DataFrame, best_method: str) -> None:
    """Plot the success of edits over their strength, with one panel per attribute and one curve per method.

    The band is the 95 % interval of the best method; the dashed curve is its leakage. `table` comes from
    `evaluate.edits.EditStudy`.
    """
    attributes = list(table["attribute"].unique())
    num_columns = min(4, len(attributes))
    num_rows = -(-len(attributes) // num_columns)
    figure = Figure(figsize=(1 + 3.4 * num_columns, 0.6 + 2.8 * num_rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, attribute, title in zip(panels, attributes, in_words(attributes), strict=False):
        for index, (method, rows) in enumerate(table[table["attribute"] == attribute].groupby("method", sort=False)):
            is_best = method == best_method
            width = 2.2 if is_best else 1.2
            axes.plot(rows["strength"], rows["success"], ".-", color=f"C{index}", linewidth=width, label=method)
            if is_best:
                axes.fill_between(
                    rows["strength"],
                    rows["success_low"],
                    rows["success_high"],
                    color=f"C{index}",
                    alpha=0.2,
                    linewidth=0,
                )
                axes.plot(rows["strength"], rows["leakage"], "--", color=f"C{index}", label=f"{method}: leakage")
        axes.set(title=title, ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
    for axes in panels[len(attributes) :]:
        axes.set_visible(False)
    figure.supxlabel("Strength (multiples of the direction)", fontsize=10)
    figure.supylabel("Share of successful edits", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    save_figure(figure, path)


def save_leakage(path: Path, changes: pd.DataFrame) -> None:
    """Draw how an edit of each attribute (rows) changes the probability of every attribute (columns).

    `changes` are those beyond what the data ties to the edit.
    """
    num_rows, num_columns = changes.shape
    figure = Figure(figsize=(2.6 + 0.32 * num_columns, 2.4 + 0.32 * num_rows), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(changes.to_numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="equal")
    axes.set_xticks(range(num_columns), in_words(changes.columns), rotation=90, fontsize=8)
    axes.set_yticks(range(num_rows), in_words(changes.index), fontsize=8)
    for row, attribute in enumerate(changes.index):
        column = list(changes.columns).index(attribute)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    axes.set(ylabel="Edited", title="Change in the classifier's probability, beyond ties in the data")
    figure.colorbar(image, ax=axes, shrink=0.8)
    save_figure(figure, path)


def in_words(names: Iterable[str]) -> list[str]:
    """Replace the underscores in names of attributes by spaces."""
    return [name.replace("_", " ") for name in names]
