"""Turn an image file of any kind into the pixels that the model sees: decode, crop, resize."""

import io
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from facevae.data.depth import check_deep_colour, grey_to_eight_bits, stored_mode

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would hand PostScript to a program
MAX_FILE_BYTES = 2**28  # some decoders hold the whole file; Pillow's limit on pixels allows fewer bytes of RGB


class BadImageError(Exception):
    """A file cannot be used as an image. The message says why."""


def read_image(file: Path | IO[bytes] | Image.Image) -> Image.Image:
    """Decode one image, upright and with 8 bits per channel.

    The format is recognised by content, not by name. EXIF rotation is applied, grey of more bits is scaled to 8 bits,
    transparent pixels are laid over white, and palettes, CMYK and other modes become RGB. Colours with an ICC profile
    are converted to sRGB; a profile that is damaged or for grey is ignored. Of an animation, the first frame is used.

    Returns
    -------
    PIL.Image.Image
        Mode "L" for grey images without transparency, else "RGB".

    Raises
    ------
    BadImageError
        The file is missing, empty, truncated, not an image, has too many bytes or pixels, or values of unknown range.
    """
    if isinstance(file, Path) and file.exists():
        if not file.is_file():
            raise BadImageError("it is not a file")  # opening a pipe would wait forever
        check_file_size(file.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with nullcontext(file) if isinstance(file, Image.Image) else Image.open(file, formats=FORMATS) as image:
                stored = stored_mode(image)
                image.load()  # before the file is closed, because an image may be returned unconverted
                check_deep_colour(image, stored)
                return _upright(_to_eight_bits(image, stored), _orientation(image))
    except UnidentifiedImageError as error:
        raise BadImageError(f"it is empty or not an image ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors for broken files
        reason = getattr(error, "strerror", None) or error  # without the path, which a manifest must not hold
        raise BadImageError(f"it cannot be decoded: {reason}") from error


def is_image(path: Path) -> bool:
    """Whether the content of a file begins like an image of the `FORMATS`, complete or not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS):
                return True
    except UnidentifiedImageError:
        return False
    except Exception:  # it cannot be read, or is damaged or too large: `read_image` says so
        return True


def check_file_size(num_bytes: int) -> None:
    """Raise a `BadImageError` if the size of a file, unpacked, is above `MAX_FILE_BYTES`."""
    if num_bytes > MAX_FILE_BYTES:
        raise BadImageError(f"it has {num_bytes:,} bytes; the limit is {MAX_FILE_BYTES:,}")


def fit_image(image: Image.Image, image_size: int, channels: int, crop: int | None) -> NDArray[np.uint8]:
    """Crop the central square and resize it.

    Parameters
    ----------
    image
        Any size, mode "L" or "RGB".
    image_size
        Height and width of the result in pixels.
    channels
        3 for RGB, 1 for grey.
    crop
        Side of the centred square to keep, in pixels of `image`; None keeps the largest.

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
    image = _in_mode(image, "RGB" if channels == 3 else "L")
    box = (left, top, left + side, top + side)
    if side == image_size:
        image = image.crop(box)
    else:  # Pillow antialiases; Hamming's windowed sinc is as fast as bilinear, but suits only shrinking
        resampling = Image.Resampling.HAMMING if side > image_size else Image.Resampling.BICUBIC
        image = image.resize((image_size, image_size), resampling, box=box)
    return np.asarray(image, dtype=np.uint8).reshape(image_size, image_size, channels)


_TRANSPOSITIONS = {  # by the value of the EXIF tag Orientation
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
    except Exception:  # damaged EXIF does not make the pixels unusable
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_eight_bits(image: Image.Image, stored: str) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(grey_to_eight_bits(image, stored))
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        image = _to_srgb(image.convert("RGBA"))
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")  # the profile describes the palette's colours
    return image if image.mode == "L" else _to_srgb(image)


def _to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, with its alpha channel if it has one. An ICC profile that fits its mode is applied."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if "icc_profile" in image.info:
        profile = io.BytesIO(image.info["icc_profile"])
        with suppress(ImageCms.PyCMSError):
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
            assert converted is not None  # None only for a conversion in place
            return converted
    return _in_mode(image, mode)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)
