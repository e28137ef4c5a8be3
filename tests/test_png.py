from pathlib import Path

import numpy as np
import pytest
from conftest import disc_images
from PIL import Image

from facevae.figures import png

TILES = disc_images(6, size=64).reshape(2, 3, 64, 64, 3)


def find(picture: Path, pixels: np.ndarray) -> bool:
    """Whether the picture contains these exact pixels."""
    with Image.open(picture) as image:
        sheet = np.asarray(image.convert("RGB"))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, pixels.shape)
    centre = pixels.shape[0] // 2
    candidates = np.argwhere((windows[:, :, 0, centre, centre] == pixels[centre, centre]).all(-1))
    return any(np.array_equal(windows[y, x, 0], pixels) for y, x in candidates)


@pytest.mark.parametrize("labels", [{}, {"row_labels": ["one", "two"], "column_labels": ["a", "b", "c"]}])
def test_picture_contains_the_exact_pixels_of_every_tile(tmp_path: Path, labels: dict[str, list[str]]) -> None:
    path = tmp_path / "tiles.png"
    png.save_tiles(path, TILES, **labels)
    assert all(find(path, tile) for tile in TILES.reshape(6, 64, 64, 3))


def test_small_grey_tiles_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    path = tmp_path / "tiles.png"
    grey = disc_images(2, size=28, channels=1).reshape(1, 2, 28, 28, 1)
    png.save_tiles(path, grey)
    assert find(path, grey[0, 1].repeat(3, 0).repeat(3, 1).repeat(3, 2))


def test_pictures_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder = tmp_path / name
        png.save_tiles(folder / "tiles.png", TILES, row_labels=["one", "two"])
        png.save_note(folder / "note.png", "nothing to show")
    for path in (tmp_path / "first").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "second" / path.name).read_bytes()
        assert b"matplotlib" not in content.lower()
