"""One image file to the pixels that the model sees: decoded rightly whatever its kind, cropped, resized."""

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class BadImageError(Exception):
    """A file that cannot be used as an image; the message says why."""


def read_image(file: Path | IO[bytes]) -> Image.Image:
    """Decode one image, upright and with 8 bits a channel.

    EXIF rotation is applied, 16-bit grey is scaled to 8 bits, transparency is laid over white, and palettes, CMYK
    and the rest become RGB. The first frame of an animation is taken.

    Returns
    -------
    PIL.Image.Image
        In mode "L" for grey images, else "RGB".

    Raises
    ------
    BadImageError
        The file is missing, empty, truncated, not an image, or would decode to an absurd number of pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _upright(_to_eight_bits(image), _orientation(image))
    except UnidentifiedImageError as error:
        raise BadImageError("it is empty or not an image") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
        raise BadImageError(f"it cannot be decoded: {error}") from error


def fit_image(image: Image.Image, image_size: int, channels: int, crop: int | None) -> NDArray[np.uint8]:
    """Cut out the centre and bring it to the size of the model.

    Parameters
    ----------
    image
        Any size, mode "L" or "RGB".
    image_size
        Height and width of the result in pixels.
    channels
        3 for RGB, 1 for grey.
    crop
        Side of the centred square that is kept, in pixels of `image`; None keeps the largest.

    Returns
    -------
    NDArray[np.uint8]
        Shape (image_size, image_size, channels).

    Raises
    ------
    BadImageError
        The image is smaller than the crop.
    """
    side = min(image.size) if crop is None else crop
    if side > min(image.size):
        raise BadImageError(f"it is {image.width} x {image.height} pixels, smaller than data.crop {side}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert("RGB" if channels == 3 else "L")
    box = (left, top, left + side, top + side)
    if side == image_size:
        image = image.crop(box)
    else:
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)  # Pillow antialiases
    return np.asarray(image, dtype=np.uint8).reshape(image_size, image_size, channels)


_TRANSPOSITIONS = {  # by the value of EXIF's tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged block says nothing of the pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray((_unit_range(image) * 255 + 0.5).astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.copy() if image.mode == "L" else image.convert("RGB")


def _unit_range(image: Image.Image) -> NDArray[np.float64]:
    """Pixels of a deep grey image in [0, 1]: integers are taken as 16 bits, floats as they are."""
    pixels = np.asarray(image, dtype=np.float64)
    scaled = pixels if image.mode == "F" else pixels / 65535
    return np.clip(scaled, 0, 1)
