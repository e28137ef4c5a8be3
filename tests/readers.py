"""Images for tests, and functions that read them in other processes: these import only what this module does."""

import os
import signal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.data.image_file import BadImageError


def disc_images(num_images: int, size: int = 8, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Discs of random position, radius and colour on black, uint8 (num_images, size, size, channels)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre = generator.uniform(0.3 * size, 0.7 * size, (num_images, 2, 1, 1))
    radius = generator.uniform(0.2 * size, 0.4 * size, (num_images, 1, 1))
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    colour = generator.integers(100, 256, (num_images, 1, 1, channels))
    return np.where(inside[..., None], colour, 0).astype(np.uint8)


PIXELS = disc_images(200)


def read_disc(position: int) -> Image.Image:
    return Image.fromarray(PIXELS[position])


def read_disc_or_fail(position: int) -> Image.Image:
    if position % 50 == 3:
        raise BadImageError(f"it is number {position}")
    return read_disc(position)


def read_until_a_crash(position: int) -> Image.Image:
    if position == 150:
        raise RuntimeError("a bug")
    return read_disc(position)


def read_until_a_kill(position: int) -> Image.Image:
    if position == 150:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    return read_disc(position)


def read_grey(position: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (position, position, position))
