"""The pictures of the figures stage: what each shows, taken from the model, the prepared set and the history."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from facevae import figures, pictures
from facevae.attributes import Directions
from facevae.errors import UserError
from facevae.inference import encode_all
from facevae.model import VAE
from facevae.params import FiguresParams
from facevae.prepared import PreparedSet

FIGURES = ("losses", "reconstructions", "samples", "interpolation", "arithmetic", "latent_map")
SAMPLE_COLUMNS = 12
MANIFOLD_STEPS = 15
MAX_POINTS = 4000


def render_all(
    folder: Path,
    model: VAE,
    directions: Directions,
    prepared: PreparedSet,
    history: pd.DataFrame,
    params: FiguresParams,
    seed: int,
) -> None:
    """Write the figures into a folder, each under its name in `FIGURES`.

    Raises
    ------
    UserError
        `figures` names an attribute that the set does not have, or a split of fewer than two images.
    """
    images = prepared.images(params.split)
    if len(images) < 2:
        raise UserError(f"figures.split: {params.split} has {len(images)} image(s), and the figures need two or more")
    _require_known("figures.attributes", params.attributes, directions)
    _require_known(
        "figures.latent_map_attributes", params.latent_map_attributes, prepared.attributes(params.split).columns
    )
    paths = [folder / f"{name}.png" for name in FIGURES]
    losses, reconstructions, samples, interpolation, arithmetic, latent_map = paths
    figures.save_losses(losses, history)
    figures.save_tiles(
        reconstructions,
        pictures.reconstruct(model, np.array(images[: params.num_reconstructions])),
        row_labels=("original", "reconstruction"),
    )
    figures.save_tiles(samples, pictures.sample(model, params.num_samples, SAMPLE_COLUMNS, seed))
    _render_interpolation(interpolation, model, images, params)
    _render_arithmetic(arithmetic, model, images, directions, params)
    _render_latent_map(latent_map, model, prepared, params)


def _render_interpolation(path: Path, model: VAE, images: NDArray[np.uint8], params: FiguresParams) -> None:
    num_pairs = min(params.num_interpolations, len(images) // 2)
    pairs = np.array(images[: 2 * num_pairs])
    tiles = pictures.interpolate(model, pairs[0::2], pairs[1::2], params.interpolation_steps)
    figures.save_tiles(path, tiles, column_labels=("original", *[""] * params.interpolation_steps, "original"))


def _render_arithmetic(
    path: Path, model: VAE, images: NDArray[np.uint8], directions: Directions, params: FiguresParams
) -> None:
    if not params.attributes:
        figures.save_note(path, "No latent arithmetic: figures.attributes is empty.")
        return
    chosen = np.array(images[np.arange(len(params.attributes)) % len(images)])
    tiles = pictures.vary_attributes(model, chosen, directions, params.attributes, params.strengths)
    strengths = [f"{strength:+g}" if strength else "0" for strength in params.strengths]
    row_labels = _in_words(params.attributes)
    figures.save_tiles(path, tiles, row_labels=row_labels, column_labels=("original", *strengths))


def _render_latent_map(path: Path, model: VAE, prepared: PreparedSet, params: FiguresParams) -> None:
    images = np.array(prepared.images(params.split)[:MAX_POINTS])
    means = encode_all(model, images)
    centre, axes = pictures.principal_plane(means)
    points = (means - centre) @ axes.T
    is_whole = model.params.latent_dim == 2
    scale = torch.ones(2) if is_whole else points.std(0)  # the prior's own, where the plane is the whole latent
    kind = "latent dimension" if is_whole else "principal axis"
    figures.save_latent_map(
        path,
        pictures.manifold(model, centre, axes, scale, MANIFOLD_STEPS),
        points.numpy(),
        _first_attribute(prepared.attributes(params.split)[: len(images)], params.latent_map_attributes),
        _in_words(params.latent_map_attributes),
        (f"{kind} 1", f"{kind} 2"),
    )


def _first_attribute(table: pd.DataFrame, attributes: Sequence[str]) -> NDArray[np.int64]:
    """For each row the position of the first of the attributes that it has, or -1."""
    has = table[list(attributes)].to_numpy(dtype=bool)
    return np.where(has.any(axis=1), has.argmax(axis=1), -1) if attributes else np.full(len(table), -1)


def _require_known(key: str, attributes: Sequence[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for attribute in attributes:
        if attribute not in known:
            there_are = f"there are {', '.join(known)}" if known else "the set has none: set the list to []"
            raise UserError(f"{key}: {attribute!r} is no attribute of this set; {there_are}")


def _in_words(attributes: Sequence[str]) -> list[str]:
    return [attribute.replace("_", " ") for attribute in attributes]
