"""Write frames as an animation, GIF or WebP; the same frames give the same bytes."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.errors import UserError
from facevae.storage.atomic import write_bytes
from facevae.storage.sheet import sheet_of

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
FRAME_MILLISECONDS = 80


def save_animation(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames (num_frames, columns, height, width, channels), each a row of pictures, as an endless loop.

    Raises
    ------
    UserError
        The path ends neither in .gif nor in .webp.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} ends neither in .gif nor in .webp; animations are GIF or WebP files")
    pictures = [Image.fromarray(np.ascontiguousarray(sheet_of(frame[None])[0])) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        FORMATS[path.suffix.lower()],
        save_all=True,
        append_images=pictures[1:],
        duration=FRAME_MILLISECONDS,
        loop=0,
    )
    write_bytes(path, buffer.getvalue())
