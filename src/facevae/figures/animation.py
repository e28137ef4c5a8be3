"""Animate rows of tiles."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.storage.animation import save_animation
from facevae.storage.sheet import sheet_of

FRAME_MILLISECONDS = 80


def save_rows(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames (num_frames, columns, height, width, channels), each a row of pictures, as a GIF or WebP.

    Raises
    ------
    UserError
        The path ends neither in .gif nor in .webp.
    """
    pictures = [Image.fromarray(np.ascontiguousarray(sheet_of(frame[None])[0])) for frame in frames]
    save_animation(path, pictures, FRAME_MILLISECONDS)
