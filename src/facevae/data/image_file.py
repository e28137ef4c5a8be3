"""One image file to the pixels that the model sees: decoded rightly whatever its kind, cropped, resized."""

import io
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would hand PostScript to a program
MAX_FILE_BYTES = 2**28  # some decoders hold the whole file; the most pixels that are taken have fewer bytes


class BadImageError(Exception):
    """A file that cannot be used as an image; the message says why."""


def read_image(file: Path | IO[bytes] | Image.Image) -> Image.Image:
    """Decode one image, upright and with 8 bits a channel.

    The content decides of which kind a file is, not its name. EXIF rotation is applied, 16-bit grey is scaled to 8
    bits, transparency is laid over white, and palettes, CMYK and the rest become RGB. Colours with an ICC profile are
    converted to sRGB; a profile that is damaged or of grey is ignored. The first frame of an animation is taken.

    Returns
    -------
    PIL.Image.Image
        In mode "L" for grey images without transparency, else "RGB".

    Raises
    ------
    BadImageError
        The file is missing, empty, truncated, not an image, or has an absurd number of bytes or of pixels.
    """
    if isinstance(file, Path) and file.exists():
        if not file.is_file():
            raise BadImageError("it is not a file")  # a pipe would be waited for
        check_file_size(file.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with nullcontext(file) if isinstance(file, Image.Image) else Image.open(file, formats=FORMATS) as image:
                image.load()  # what needs no conversion is returned as it is, and the file will be closed
                return _upright(_to_eight_bits(image), _orientation(image))
    except UnidentifiedImageError as error:
        raise BadImageError(f"it is empty or not an image ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
        reason = getattr(error, "strerror", None) or error  # without the path, which manifests must not hold
        raise BadImageError(f"it cannot be decoded: {reason}") from error


def check_file_size(num_bytes: int) -> None:
    """Raise a `BadImageError` where a file has, or would be unpacked to, an absurd number of bytes."""
    if num_bytes > MAX_FILE_BYTES:
        raise BadImageError(f"it has {num_bytes:,} bytes; more than {MAX_FILE_BYTES:,} are not read")


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
    image = _in_mode(image, "RGB" if channels == 3 else "L")
    box = (left, top, left + side, top + side)
    if side == image_size:
        image = image.crop(box)
    else:  # Pillow antialiases; its windowed sinc costs what a bilinear filter does, and is for making smaller only
        resampling = Image.Resampling.HAMMING if side > image_size else Image.Resampling.BICUBIC
        image = image.resize((image_size, image_size), resampling, box=box)
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
        return Image.fromarray(_scaled_to_eight_bits(image))
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        image = _to_srgb(image.convert("RGBA"))
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")  # which is what its profile is of
    return image if image.mode == "L" else _to_srgb(image)


def _to_srgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA for RGBA, by the image's ICC profile where it has one that fits its mode."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if "icc_profile" in image.info:
        profile = io.BytesIO(image.info["icc_profile"])
        with suppress(ImageCms.PyCMSError):
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
            assert converted is not None  # only a conversion in place gives nothing
            return converted
    return _in_mode(image, mode)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _scaled_to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of a deep grey image: integers are taken as 16 bits, floats as [0, 1]."""
    pixels = np.array(image, dtype=np.float32)
    if np.isnan(pixels).any():
        raise ValueError("a pixel is not a number")
    if image.mode != "F":
        pixels /= 65535
    return (np.clip(pixels, 0, 1, out=pixels) * 255 + 0.5).astype(np.uint8)
