import io

import numpy as np
import pytest
from PIL import Image

from facevae.data.image_file import BadImageError, fit_image, read_image


def stored(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def test_rgb_and_grey_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(read_image(stored(Image.fromarray(pixels), "PNG"))), pixels)
    grey = read_image(stored(Image.fromarray(pixels[..., 0]), "PNG"))
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), pixels[..., 0])


def test_a_damaged_exif_block_changes_no_pixel() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "maker"
    content = stored(image, "JPEG", exif=exif).getvalue()
    start = content.index(b"Exif\0\0") + 6
    expected = np.asarray(read_image(io.BytesIO(content)))
    for position in range(start, start + 40):
        damaged = content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
        pixels = np.asarray(read_image(io.BytesIO(damaged)))
        assert sorted(pixels.flatten()) == sorted(expected.flatten())


def test_the_largest_centred_square_is_kept() -> None:
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[:, 2:8] = 200
    assert (fit_image(Image.fromarray(pixels), 6, 3, None) == 200).all()


def test_a_crop_is_centred_and_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(fit_image(Image.fromarray(pixels), 3, 3, 3), pixels[3:6, 2:5])


def test_resizing_antialiases() -> None:
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = fit_image(Image.fromarray(checkerboard), 8, 1, None)
    assert small.shape == (8, 8, 1)
    assert abs(small.astype(int) - 127).max() <= 2


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(BadImageError, match="7 x 9 pixels, smaller than data.crop 8"):
        fit_image(Image.new("RGB", (7, 9)), 8, 3, 8)
