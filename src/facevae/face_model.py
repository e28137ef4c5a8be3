"""A trained model in use: sample, encode, decode, reconstruct, edit and interpolate faces, arrays in and arrays out."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray

from facevae.arguments import BEST, MAX_SEED, checked_temperature, choose, names_of, signed_strengths, whole_number
from facevae.config.paths import DIRECTIONS, PRIORS
from facevae.errors import UserError
from facevae.image_input import Images, to_pixels
from facevae.model import checkpoint
from facevae.model.binarization import binarize
from facevae.model.inference import decode_all, encode_all
from facevae.priors.fitting import FittedPriors, load_priors
from facevae.priors.normal import Prior, Sampler, StandardNormal

if TYPE_CHECKING:  # it imports pandas, which only edits need
    from facevae.evaluate.directions import Directions, FittedDirections

Pixels = NDArray[np.uint8]  # (N, height, width, channels)
Latents = NDArray[np.float32]  # (N, latent_dim)


class FaceModel:
    """A trained model, with the priors and attribute directions that were fitted to its latents.

    Images come in as uint8 arrays, Pillow images or paths: one of them, a list, or one array (N, height, width,
    channels). They come out as uint8 arrays (N, height, width, channels), with N = 1 for a single image. Latents are
    float32 arrays (N, latent_dim).

    The parameters are those of `facevae.load`. Every method raises a `UserError` for input that it cannot use.

    Attributes
    ----------
    image_shape
        Height, width and channels of the images.
    latent_dim
        Number of dimensions of the latent.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        priors: str | PathLike[str] | None = None,
        directions: str | PathLike[str] | None = None,
        device: str = "cpu",
    ) -> None:
        path = Path(path)
        model, self._header = checkpoint.load(path)
        try:
            self._model = model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
            reason = str(error).partition("\n")[0]
            raise UserError(f"device: {device!r} cannot be used ({reason}); use 'cpu'") from error
        self._priors_path = path.with_name(PRIORS.name) if priors is None else Path(priors)
        self._directions_path = path.with_name(DIRECTIONS.name) if directions is None else Path(directions)
        self.image_shape = (self._header.image_size, self._header.image_size, self._header.image_channels)
        self.latent_dim = self._header.model.latent_dim

    @property
    def attributes(self) -> list[str]:
        """The attributes that `edit` knows, sorted."""
        return sorted(self._directions_by(BEST))

    def prepare(self, images: Images, *, crop: SupportsIndex | None = None) -> Pixels:
        """Bring images to the form that the network takes. The other methods do this themselves.

        Files and Pillow images are cropped and resized as in training, in proportion: where training kept 148 of 178
        pixels, the centred square of 148/178 of the shorter side is kept. Arrays must already have `image_shape`. If
        the model was trained on black and white images, all are binarised as in training, random draws with seed 0.
        Images that are prepared already stay as they are.

        Parameters
        ----------
        images
            One image or more.
        crop
            Side of the centred square to keep, in pixels of the file or Pillow image; None: in proportion, as in
            training.
        """
        square = self._header.crop if crop is None else whole_number("crop", crop, minimum=1)
        return binarize(to_pixels(images, self.image_shape, square), self._header.binarization, seed=0)

    def sample(
        self,
        num_samples: SupportsIndex,
        *,
        seed: SupportsIndex = 0,
        prior: str = BEST,
        temperature: float = 1.0,
        present: Sequence[str] = (),
        absent: Sequence[str] = (),
    ) -> Pixels:
        """Draw new faces.

        Parameters
        ----------
        num_samples
            How many, 1 or more.
        seed
            0 to 2^32 - 1. The same number and seed give the same faces.
        prior
            What to draw latents from: "normal", which needs only the weights, "mixture", "flow", or "best", the one
            that the stage `evaluate` found best.
        temperature
            0 to 2, the factor of the noise that the faces are made of. Below 1 they are more typical and vary less.
        present, absent
            Attributes that the faces shall have and lack. With any, the prior must be "flow" or "best", and is flow
            matching.
        """
        number = whole_number("num_samples", num_samples, minimum=1)
        generator = torch.Generator().manual_seed(whole_number("seed", seed, minimum=0, maximum=MAX_SEED))
        sampler = self._sampler(prior, names_of("present", present), names_of("absent", absent))
        return decode_all(self._model, sampler.sample(number, generator, temperature=checked_temperature(temperature)))

    def walk(
        self,
        num_stops: SupportsIndex = 4,
        num_steps: SupportsIndex = 12,
        *,
        num_faces: SupportsIndex = 1,
        seed: SupportsIndex = 0,
        temperature: float = 1.0,
        present: Sequence[str] = (),
        absent: Sequence[str] = (),
    ) -> Pixels:
        """Faces that turn into other faces and back into the first, drawn by flow matching.

        Parameters
        ----------
        num_stops, num_steps
            How many faces to pass, 2 or more, and the frames from one to the next, 1 or more.
        num_faces
            How many such walks, 1 or more.
        seed, temperature, present, absent
            As for `sample`.

        Returns
        -------
        numpy.ndarray
            uint8 (num_stops * num_steps, num_faces, height, width, channels)
        """
        from facevae.figures.pictures import walk

        asked = self._fitted_priors.flow.given(names_of("present", present), names_of("absent", absent))
        sizes = (
            whole_number("num_stops", num_stops, minimum=2),
            whole_number("num_steps", num_steps, minimum=1),
            whole_number("num_faces", num_faces, minimum=1),
        )
        number = whole_number("seed", seed, minimum=0, maximum=MAX_SEED)
        return walk(self._model, asked, *sizes, number, temperature=checked_temperature(temperature))

    def encode(self, images: Images) -> Latents:
        """The latents of images, (N, latent_dim): the means of their posteriors."""
        latents: Latents = encode_all(self._model, self.prepare(images)).mean.numpy()
        return latents

    def decode(self, latent: NDArray[np.floating[Any]]) -> Pixels:
        """The faces of latents (N, latent_dim), or of a single latent (latent_dim,)."""
        latent = np.asarray(latent)
        if latent.dtype.kind != "f":
            raise UserError(f"latent: dtype {latent.dtype} is not floating point; use float32, as encode returns")
        if latent.ndim not in (1, 2) or latent.shape[-1] != self.latent_dim or not len(latent):
            raise UserError(
                f"latent: shape {latent.shape} does not fit the model; use (N, {self.latent_dim}) with N of 1 or more, "
                f"or ({self.latent_dim},)"
            )
        with np.errstate(over="ignore"):  # reported below
            latent = np.atleast_2d(latent).astype(np.float32)
        if not np.isfinite(latent).all():
            raise UserError("latent: not every value is finite in float32; replace NaN, infinities and huge values")
        return decode_all(self._model, torch.from_numpy(latent))

    def reconstruct(self, images: Images) -> Pixels:
        """Encode images and decode their latents."""
        return self.decode(self.encode(images))

    def edit(
        self,
        images: Images,
        *,
        add: Mapping[str, float] | None = None,
        remove: Mapping[str, float] | None = None,
        method: str = BEST,
    ) -> Pixels:
        """Reconstruct images with attributes added or removed.

        Parameters
        ----------
        images
            One image or more; all get the same edit.
        add, remove
            Strength by attribute, a multiple of the attribute's direction. Name at least one attribute.
        method
            How the directions were fitted: "original", "difference", "balanced", "joint", or "best", the one that the
            stage `evaluate` found best.
        """
        from facevae.evaluate.directions import direction_of
        from facevae.evaluate.directions import edit as move

        strengths = signed_strengths({} if add is None else add, {} if remove is None else remove)
        directions = self._directions_by(method)
        steps = [(direction_of(directions, attribute), strength) for attribute, strength in strengths.items()]
        latent = torch.from_numpy(self.encode(images))
        for direction, strength in steps:
            latent = move(latent, direction, strength)
        return self.decode(latent.numpy())

    def interpolate(self, first: Images, last: Images, num_steps: SupportsIndex = 8) -> Pixels:
        """Faces (num_steps, height, width, channels) on the straight line between the latents of two images.

        The line begins and ends with the reconstructions of the two images. `num_steps` is 2 or more.
        """
        number = whole_number("num_steps", num_steps, minimum=2)
        start, end = (torch.from_numpy(self.encode(images)) for images in (first, last))
        if not len(start) == len(end) == 1:
            raise UserError(f"interpolate: {len(start)} and {len(end)} images; pass one image for each end")
        weights = torch.linspace(0, 1, number)[:, None]  # (num_steps, 1)
        return self.decode(torch.lerp(start, end, weights).numpy())

    def _sampler(self, prior: str, present: tuple[str, ...], absent: tuple[str, ...]) -> Sampler:
        if not present and not absent:
            return self._prior(prior)
        if prior not in (BEST, "flow"):
            raise UserError(f"prior: {prior!r} knows no attributes; use 'flow' with present or absent")
        return self._fitted_priors.flow.given(present, absent)

    def _prior(self, name: str) -> Prior:
        if name == "normal":
            return StandardNormal(self.latent_dim)
        return choose("prior", name, self._fitted_priors.priors, self._fitted_priors.best)

    @cached_property
    def _fitted_priors(self) -> FittedPriors:
        if not self._priors_path.exists():
            raise UserError(
                f"{self._priors_path} is missing: make it by `dvc repro evaluate`, name another file of priors, or "
                "use the prior 'normal', which needs only the weights"
            )
        return load_priors(self._priors_path, fingerprint=self._header.fingerprint)

    def _directions_by(self, method: str) -> "Directions":
        fitted = self._fitted_directions
        by_method = {str(name): directions for name, directions in fitted.by_method.items()}
        return choose("method", method, by_method, fitted.best)

    @cached_property
    def _fitted_directions(self) -> "FittedDirections":
        from facevae.evaluate.directions import load_directions

        return load_directions(self._directions_path, fingerprint=self._header.fingerprint)
