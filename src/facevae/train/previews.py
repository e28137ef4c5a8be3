"""Pictures to watch a training by: the same reconstructions and samples after every epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE
from facevae.storage.atomic import write_bytes
from facevae.storage.sheet import png_of, sheet_of

NUM_COLUMNS = 8  # images that are reconstructed, and samples in a row
NUM_SAMPLES = 16
NUM_POSTERIORS = 64  # validation images that samples are drawn after; encoding them all would take too long

Previews = dict[str, bytes]  # of one epoch: PNG files by name


class HasPreviews(Protocol):
    """The progress of a training, as far as this module needs it."""

    @property
    def previews(self) -> Sequence[Mapping[str, bytes]]: ...


class Previewer:
    """Draws the same images' reconstructions, and samples from the same noise, with the weights of each epoch.

    Parameters
    ----------
    validation_images
        Shape (N, height, width, channels), as the model takes them.
    seed
        Determines the noise.
    """

    def __init__(self, validation_images: NDArray[np.uint8], latent_dim: int, seed: int) -> None:
        self._images = np.array(validation_images[:NUM_POSTERIORS])
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randn(NUM_SAMPLES, latent_dim, generator=generator, dtype=torch.float64)

    def draw(self, model: VAE) -> Previews:
        """Draw with a model in evaluation mode.

        Latents of samples come from the Gaussian with the moments of the aggregate posterior: no prior is fitted yet,
        and draws from N(0, I) decode to ghosts.
        """
        posteriors = encode_all(model, self._images)
        mean, covariance = posteriors.aggregate_moments()
        latent = mean + self._noise @ torch.linalg.cholesky(covariance).T  # (NUM_SAMPLES, latent_dim)
        samples = decode_all(model, latent.float())
        shown = self._images[:NUM_COLUMNS]
        reconstructions = decode_all(model, posteriors.mean[:NUM_COLUMNS])
        tiles = {
            "reconstructions": np.stack([shown, reconstructions]),
            "samples": samples.reshape(-1, NUM_COLUMNS, *samples.shape[1:]),
        }
        return {name: png_of(sheet_of(grid)[0]) for name, grid in tiles.items()}


def write(folder: Path, progress: HasPreviews) -> None:
    """Make a folder hold exactly the previews so far, as NAME/EPOCH.png."""
    wanted = {
        folder / name / f"{epoch}.png": content
        for epoch, previews in enumerate(progress.previews, 1)
        for name, content in previews.items()
    }
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()
    for path, content in wanted.items():
        if not path.is_file() or path.read_bytes() != content:
            write_bytes(path, content)
