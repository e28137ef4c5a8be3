"""Grids of images as one picture, and pictures as PNG; the same pixels give the same bytes."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE = 72  # pixels; smaller images are enlarged to about this height
GAP = 2  # white pixels between two images


def sheet_of(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Lay all tiles (rows, columns, height, width, channels) on one white sheet (height, width, 3).

    Images are enlarged by a whole factor. Also return the pixels from one tile to the next.
    """
    rows, columns, height, width, channels = tiles.shape
    factor = max(1, round(TILE / height))
    tiles = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    height, width = height * factor, width * factor
    sheet = np.full((rows, height + GAP, columns, width + GAP, channels), 255, np.uint8)
    sheet[:, :height, :, :width] = tiles.transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + GAP), columns * (width + GAP), channels)[:-GAP, :-GAP]
    return np.broadcast_to(sheet, (*sheet.shape[:2], 3)) if channels == 1 else sheet, height + GAP


def png_of(sheet: NDArray[np.uint8]) -> bytes:
    """The content of a PNG file that holds a sheet (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(buffer, "png")
    return buffer.getvalue()
