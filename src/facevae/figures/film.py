"""Write pictures as an animation, GIF or WebP; the same pictures give the same bytes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.errors import UserError
from facevae.storage.atomic import write_bytes
from facevae.storage.sheet import sheet_of

FORMATS = {".gif": "GIF", ".webp": "WEBP"}  # a GIF has 256 colours a frame
ROW_MILLISECONDS = 80


def check_suffix(path: Path) -> None:
    """Raise a `UserError` if a path names no animation."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} ends neither in .gif nor in .webp; animations are GIF or WebP files")


def save_animation(
    path: Path, pictures: Sequence[Image.Image], milliseconds: int | Sequence[int], *, lossless: bool = False
) -> None:
    """Write pictures of one size as an endless loop.

    Parameters
    ----------
    path
        Ends in .gif or .webp.
    milliseconds
        How long each picture stays: one number for all, or one each.
    lossless
        Whether a WebP keeps all colours as they are.

    Raises
    ------
    UserError
        The path has another suffix.
    """
    check_suffix(path)
    buffer = io.BytesIO()
    kind = FORMATS[path.suffix.lower()]
    pictures[0].save(
        buffer, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, lossless=lossless
    )
    write_bytes(path, buffer.getvalue())


def save_rows(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames (num_frames, columns, height, width, channels), each a row of tiles, as `save_animation` does."""
    pictures = [Image.fromarray(np.ascontiguousarray(sheet_of(frame[None])[0])) for frame in frames]
    save_animation(path, pictures, ROW_MILLISECONDS)
