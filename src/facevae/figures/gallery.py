"""The figures stage: draw each picture from the results of the earlier stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.checks import require_known
from facevae.config.paths import DIRECTIONS, EDITS, HISTORY, LATENT, LEAKAGE, MODEL, PRIORS
from facevae.config.schema import FiguresParams
from facevae.data.prepared import PreparedSet
from facevae.errors import UserError
from facevae.evaluate.directions import Directions, FittedDirections, load_directions
from facevae.evaluate.distances import nearest_neighbours
from facevae.figures import charts, film, pictures, png
from facevae.model import checkpoint
from facevae.model.binarization import binarize
from facevae.model.checkpoint import CheckpointHeader, require_shape
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE
from facevae.priors.fitting import FittedPriors, load_priors
from facevae.storage.tables import read_csv

FIGURES = (
    "losses",
    "reconstructions",
    "samples",
    "samplers",
    "conditional",
    "neighbours",
    "interpolation",
    "arithmetic",
    "strengths",
    "leakage",
    "latent_health",
    "latent_map",
)
WALK = "walk.gif"  # beside these PNGs
COLUMNS = 12  # images in a row of samples
NUM_WALKS, NUM_STOPS, NUM_STEPS = 6, 4, 12  # faces side by side, stops of each, frames from stop to stop
MANIFOLD_STEPS = 15  # images along each side of the latent map
MAX_POINTS = 4000  # images whose latents are drawn


@dataclass(frozen=True)
class Results:
    """A trained model, its priors and directions, the prepared set, and the tables of training and evaluation."""

    model: VAE
    header: CheckpointHeader
    priors: FittedPriors
    directions: FittedDirections
    prepared: PreparedSet
    history: pd.DataFrame
    latent: pd.DataFrame
    edits: pd.DataFrame
    leakage: pd.DataFrame


def load_results() -> Results:
    """Read the results of the earlier stages.

    Raises
    ------
    UserError
        A file is missing, damaged or not written by its stage. The message names the stage to run.
    """
    model, header = checkpoint.load(MODEL)
    return Results(
        model,
        header,
        load_priors(PRIORS, fingerprint=header.fingerprint),
        load_directions(DIRECTIONS, fingerprint=header.fingerprint),
        PreparedSet(),
        read_csv(HISTORY, numbers=charts.HISTORY_COLUMNS, stage="train"),
        read_csv(LATENT, numbers=charts.LATENT_COLUMNS, stage="evaluate"),
        read_csv(EDITS, numbers=charts.EDIT_COLUMNS, text=("attribute", "method"), stage="evaluate", may_be_empty=True),
        read_csv(LEAKAGE, numbers=(), text=("attribute",), stage="evaluate", may_be_empty=True),
    )


def render_all(folder: Path, results: Results, params: FiguresParams, *, horizontal_flip: bool, seed: int) -> None:
    """Write the figures into a folder, one PNG for each name in `FIGURES`, and the animation `WALK`.

    `horizontal_flip` says whether the training mirrored its images.

    Raises
    ------
    UserError
        `figures` names an attribute that the set does not have, or a split that has fewer than two images or images of
        another shape than the model takes.
    """
    model, prepared = results.model, results.prepared
    images = binarize(prepared.images(params.split), results.header.binarization, seed)
    if len(images) < 2:
        raise UserError(
            f"figures.split: {params.split} has {len(images)} image(s), but the figures need two. Choose another split"
        )
    require_shape(images, results.header)
    directions = results.directions.by_method[results.directions.best]
    require_known("figures.attributes", params.attributes, directions)
    require_known(
        "figures.latent_map_attributes", params.latent_map_attributes, prepared.attributes(params.split).columns
    )
    paths = {name: folder / f"{name}.png" for name in FIGURES}
    charts.save_losses(paths["losses"], results.history)
    png.save_tiles(
        paths["reconstructions"],
        pictures.reconstruct(model, np.array(images[: params.num_reconstructions])),
        row_labels=("original", "reconstruction"),
    )
    best_prior = results.priors.priors[results.priors.best]
    own = pictures.sample(model, best_prior, params.num_samples, COLUMNS, seed, temperature=params.temperature)
    png.save_tiles(paths["samples"], own)
    _render_samplers(paths["samplers"], results, params.temperature, seed)
    _render_conditional(paths["conditional"], results, params, seed)
    _render_neighbours(paths["neighbours"], results, params.temperature, horizontal_flip, seed)
    sizes = NUM_STOPS, NUM_STEPS, NUM_WALKS
    steps = pictures.walk(model, results.priors.flow.given(), *sizes, seed, temperature=params.temperature)
    film.save_rows(folder / WALK, steps)
    _render_interpolation(paths["interpolation"], model, images, params)
    _render_arithmetic(paths["arithmetic"], model, images, directions, params)
    _render_edits(paths["strengths"], paths["leakage"], results)
    posteriors = encode_all(model, images[:MAX_POINTS])
    draws = posteriors.sample(torch.Generator().manual_seed(seed))
    charts.save_latent_health(paths["latent_health"], results.latent, draws.numpy())
    _render_latent_map(paths["latent_map"], model, prepared, posteriors.mean, params)


def _render_samplers(path: Path, results: Results, temperature: float, seed: int) -> None:
    """Draw one row of samples from each prior."""
    rows = [
        pictures.sample(results.model, prior, COLUMNS, COLUMNS, seed, temperature=temperature)
        for prior in results.priors.priors.values()
    ]
    png.save_tiles(path, np.concatenate(rows), row_labels=list(results.priors.priors))


def _render_conditional(path: Path, results: Results, params: FiguresParams, seed: int) -> None:
    """Draw pairs of samples from the same noise, with and without each attribute."""
    if not params.attributes:
        png.save_note(path, "No samples with attributes: figures.attributes is empty.")
        return
    require_known("figures.attributes", params.attributes, results.priors.flow.attributes)
    draw = results.model, results.priors.flow, params.attributes, COLUMNS // 2, seed
    tiles = pictures.conditional(*draw, temperature=params.temperature)
    row_labels = charts.in_words(params.attributes)
    png.save_tiles(path, tiles, row_labels=row_labels, column_labels=("with", "without") * (COLUMNS // 2))


def _render_neighbours(path: Path, results: Results, temperature: float, horizontal_flip: bool, seed: int) -> None:
    """Draw samples of the best prior, and below each its nearest training images in pixels and in the latent."""
    prior, train = results.priors.priors[results.priors.best], results.prepared.images("train")
    latent = prior.sample(COLUMNS, torch.Generator().manual_seed(seed), temperature=temperature)
    samples = decode_all(results.model, latent)
    seen = binarize(train, results.header.binarization, seed)
    nearest, _ = nearest_neighbours(latent, encode_all(results.model, seen).mean.split(MAX_POINTS))
    in_latent = np.array(train[nearest.numpy()])[None]
    tiles = np.concatenate([samples[None], pictures.nearest(samples, train, mirrored=horizontal_flip), in_latent])
    png.save_tiles(path, tiles, row_labels=("sample", "nearest in pixels", "nearest in latent"))


def _render_interpolation(path: Path, model: VAE, images: NDArray[np.uint8], params: FiguresParams) -> None:
    num_pairs = min(params.num_interpolations, len(images) // 2)
    pairs = np.array(images[: 2 * num_pairs])
    tiles = pictures.interpolate(model, pairs[0::2], pairs[1::2], params.interpolation_steps)
    png.save_tiles(path, tiles, column_labels=("original", *[""] * params.interpolation_steps, "original"))


def _render_arithmetic(
    path: Path, model: VAE, images: NDArray[np.uint8], directions: Directions, params: FiguresParams
) -> None:
    if not params.attributes:
        png.save_note(path, "No latent arithmetic: figures.attributes is empty.")
        return
    chosen = np.array(images[np.arange(len(params.attributes)) % len(images)])
    tiles = pictures.vary_attributes(model, chosen, directions, params.attributes, params.strengths)
    strengths = [f"{strength:+g}" if strength else "0" for strength in params.strengths]
    row_labels = charts.in_words(params.attributes)
    png.save_tiles(path, tiles, row_labels=row_labels, column_labels=("original", *strengths))


def _render_edits(strengths: Path, leakage: Path, results: Results) -> None:
    if results.edits.empty:
        for path in (strengths, leakage):
            png.save_note(
                path, "No edits to show: the classifier judges no reconstruction correctly for evaluate.attributes."
            )
        return
    charts.save_strengths(strengths, results.edits, results.directions.best)
    charts.save_leakage(leakage, results.leakage.set_index("attribute"))


def _render_latent_map(path: Path, model: VAE, prepared: PreparedSet, means: Tensor, params: FiguresParams) -> None:
    centre, axes = pictures.principal_plane(means)
    points = (means - centre) @ axes.T
    is_whole = model.params.latent_dim == 2
    scale = torch.ones(2) if is_whole else points.std(0)  # the prior's scale, if the plane is the latent
    kind = "latent dimension" if is_whole else "principal axis"
    charts.save_latent_map(
        path,
        pictures.manifold(model, centre, axes, scale, MANIFOLD_STEPS),
        points.numpy(),
        _first_attribute(prepared.attributes(params.split)[: len(means)], params.latent_map_attributes),
        charts.in_words(params.latent_map_attributes),
        (f"{kind} 1", f"{kind} 2"),
    )


def _first_attribute(table: pd.DataFrame, attributes: Sequence[str]) -> NDArray[np.int64]:
    """For each row of the table, the index of the first of the attributes that it has, or -1."""
    has = table[list(attributes)].to_numpy(dtype=bool)
    return np.where(has.any(axis=1), has.argmax(axis=1), -1) if attributes else np.full(len(table), -1)
