import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facevae.images import BadImageError, fit_image, read_image

RED = (255, 0, 0)


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


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    pixels = np.asarray(read_image(stored(image, "PNG")))
    assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_a_transparent_palette_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 255, 0, 0])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(read_image(stored(image, "PNG", transparency=0)))
    assert pixels.tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = np.asarray(read_image(stored(red, "TIFF")))
    assert pixels.shape == (8, 8, 3)
    assert pixels[4, 4].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    deep = np.array([[0, 257 * 100, 257 * 254, 65535]], dtype=np.uint16)
    assert np.asarray(read_image(stored(Image.fromarray(deep), "PNG"))).tolist() == [[0, 100, 254, 255]]


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste(RED, (0, 0, 10, 10))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    upright = read_image(stored(image, "JPEG", exif=exif, quality=100))
    assert upright.size == (10, 20)
    top, bottom = upright.getpixel((5, 2)), upright.getpixel((5, 17))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > 50 > bottom[0]


def test_a_damaged_exif_block_costs_no_pixel() -> None:
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


@pytest.mark.parametrize("share", [tenth / 10 for tenth in range(10)])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    content = stored(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG").getvalue()
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadImageError):
        read_image(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.jpg"
    path.write_text("not an image")
    with pytest.raises(BadImageError, match="empty or not an image"):
        read_image(path)
    with pytest.raises(BadImageError, match="No such file"):
        read_image(tmp_path / "missing.jpg")


def test_a_decompression_bomb_is_refused() -> None:
    bomb = stored(Image.new("1", (30_000, 30_000)), "PNG")
    with pytest.raises(BadImageError, match="pixels"):
        read_image(bomb)


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
