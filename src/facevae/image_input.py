"""Images as users have them (arrays, Pillow images, paths, lists of these) to one array of pixels."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.crop import Crop
from facevae.data.image_file import BadImageError, fit_image, read_image
from facevae.errors import UserError

OneImage = NDArray[np.uint8] | Image.Image | str | PathLike[str]
Images = OneImage | Iterable[OneImage]
Shape = tuple[int, int, int]  # height, width, channels

ACCEPTED = "use a uint8 array, a Pillow image or a path"


def to_pixels(images: Images, shape: Shape, crop: Crop | int | None) -> NDArray[np.uint8]:
    """Bring one or more images to a uint8 array (N, height, width, channels).

    Parameters
    ----------
    images
        Arrays must already have the shape. Files and Pillow images are cropped and resized to it.
    shape
        Height, width and channels of the result; height and width are equal.
    crop
        The centred square to keep: its side in pixels of the file or Pillow image; that of training, in proportion to
        the shorter side; or None, the largest.

    Raises
    ------
    UserError
        There is no image, or one of them cannot be used.
    """
    if isinstance(images, np.ndarray):
        pixels = _checked(images, "images", shape)
        pixels = pixels[None] if pixels.ndim == 3 else pixels
    elif isinstance(images, str | PathLike | Image.Image):
        pixels = _read(images, "the image", shape, crop)[None]
    elif isinstance(images, Iterable):
        parts = [_read(image, f"images[{i}]", shape, crop) for i, image in enumerate(images)]
        pixels = np.stack(parts) if parts else np.empty((0, *shape), np.uint8)
    else:
        raise UserError(f"images: {type(images).__name__} is not an image; {ACCEPTED}")
    if not len(pixels):
        raise UserError("images: there are none; pass at least one")
    return pixels


def _read(image: object, name: str, shape: Shape, crop: Crop | int | None) -> NDArray[np.uint8]:
    """One image as an array of the shape."""
    if isinstance(image, np.ndarray):
        pixels = _checked(image, name, shape)
        if pixels.ndim == 4:
            raise UserError(f"{name}: shape {pixels.shape} is a batch; in a list, pass arrays of single images")
        return pixels
    if isinstance(image, str | PathLike):
        image = Path(image)
        name = str(image)
    if not isinstance(image, Path | Image.Image):
        raise UserError(f"{name}: {type(image).__name__} is not an image; {ACCEPTED}")
    try:
        decoded = read_image(image)
        if 0 in decoded.size:
            raise BadImageError("it has no pixels")
        side = crop.side_in(decoded.size) if isinstance(crop, Crop) else crop
        if side is not None and side > min(decoded.size):
            raise BadImageError(
                f"it is {decoded.width} x {decoded.height} pixels, smaller than the crop {side}: lower it (--crop), or "
                "leave it out, which crops in proportion as in training"
            )
        return fit_image(decoded, shape[0], shape[2], side)
    except BadImageError as error:
        raise UserError(f"{name} cannot be used: {error}") from error


def _checked(array: NDArray[Any], name: str, shape: Shape) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise UserError(f"{name}: dtype {array.dtype} is not uint8; scale intensities to 0 to 255 and convert them")
    if array.ndim not in (3, 4) or array.shape[-3:] != shape:
        batch = ", ".join(map(str, shape))
        raise UserError(
            f"{name}: shape {array.shape} does not fit the model; use ({batch}) or (N, {batch}), or pass a Pillow "
            "image or a path, which is cropped and resized"
        )
    return array
