"""Pixels of more than 8 bits: which values they may have, and what these are in 8 bits.

A `ValueError` says why an image's values cannot be known to mean what they seem to.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DARK = 2**14  # of 2^16: only images of 10, 12 or 14 bits are all below, and a few that are nearly black
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag, and its value for negatives; Pillow turns them only at 8 bits


def stored_mode(image: Image.Image) -> str:
    """How an image that is not yet decoded stores its pixels, in Pillow's words, such as "RGB;16B"; else ""."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def check_deep_colour(image: Image.Image, stored: str) -> None:
    """Refuse a decoded image with several channels of 16 bits if it seems to have fewer bits.

    Pillow gives only the upper 8 bits of each channel.
    """
    if ";16" in stored and image.mode in ("RGB", "RGBA", "LA"):
        colours = np.asarray(image.convert("L" if image.mode == "LA" else "RGB"))
        _check_peak(int(colours.max()) * 256)


def grey_to_eight_bits(image: Image.Image, stored: str) -> NDArray[np.uint8]:
    """Pixels of a deep grey image (height, width): integers of 12 or 16 bits, or floats from 0 to 1, scaled to 255."""
    pixels = np.array(image, dtype=np.float32)
    if image.mode == "F":
        _check_floats(pixels)
    elif stored.startswith("I;12"):
        pixels /= 2**12 - 1
    elif image.mode.startswith("I;16") or image.format == "PPM":  # PPM tells its largest value
        if image.format != "PPM":
            _check_peak(int(pixels.max()))
        pixels /= 2**16 - 1
    else:
        raise ValueError(
            f"its integers of 32 bits, from {pixels.min():.0f} to {pixels.max():.0f}, have no known range: save it "
            "with 8 or 16 bits"
        )
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = 1 - pixels
    return (pixels * 255 + 0.5).astype(np.uint8)


def _check_floats(pixels: NDArray[np.float32]) -> None:
    if np.isnan(pixels).any():
        raise ValueError("a pixel is not a number")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(
            f"its floats go from {pixels.min():g} to {pixels.max():g}, but only 0 to 1 has a known meaning: scale them"
        )


def _check_peak(peak: int) -> None:
    if 0 < peak < DARK:
        raise ValueError(
            f"its values of 16 bits are all below {DARK:,}, so that it seems to have fewer bits: scale them to 65,535, "
            "or save it with 8 bits"
        )
