"""The animation of a training."""

from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from facevae.errors import UserError
from facevae.timelapse import save_timelapse

NUM_EPOCHS = 11  # so that 10 sorts before 2 as text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of eleven epochs: red and ever brighter, and a wider blue one."""
    for epoch in range(1, NUM_EPOCHS + 1):
        for name, size, colour in (("a", (10, 6), (20 * epoch, 0, 0)), ("b", (30, 4), (0, 0, 20 * epoch))):
            path = tmp_path / "epochs" / name / f"{epoch}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, colour).save(path)
    return tmp_path / "epochs"


@pytest.mark.parametrize("name", ["film.gif", "film.webp", "FILM.GIF"])
def test_each_epoch_is_a_frame_in_order(folder: Path, tmp_path: Path, name: str) -> None:
    assert save_timelapse(tmp_path / name, folder, 100) == NUM_EPOCHS
    with Image.open(tmp_path / name) as film:
        assert film.size == (30, 6 + 8 + 4)
        assert film.info["loop"] == 0
        frames = ImageSequence.all_frames(film, lambda frame: frame.convert("RGB"))
        assert len(frames) == NUM_EPOCHS
        for epoch, frame in enumerate(frames, 1):
            assert frame.getpixel((0, 0)) == (20 * epoch, 0, 0)
            assert frame.getpixel((29, 17)) == (0, 0, 20 * epoch)
            assert frame.getpixel((29, 0)) == (255, 255, 255)


def test_the_last_frame_stays_longer(folder: Path, tmp_path: Path) -> None:
    save_timelapse(tmp_path / "film.gif", folder, 100)
    durations = []
    with Image.open(tmp_path / "film.gif") as film:
        for frame in range(NUM_EPOCHS):
            film.seek(frame)
            durations.append(film.info["duration"])
    assert durations == [100] * (NUM_EPOCHS - 1) + [500]


def test_the_same_pictures_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for suffix in (".gif", ".webp"):
        paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
        for path in paths:
            save_timelapse(path, folder, 100)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_missing_pictures_and_other_formats_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"film.png ends neither in .gif nor in .webp"):
        save_timelapse(tmp_path / "film.png", folder, 100)
    with pytest.raises(UserError, match="nowhere has no pictures of epochs: get them by `dvc checkout`"):
        save_timelapse(tmp_path / "film.gif", tmp_path / "nowhere", 100)
    (folder / "a" / "2.png").write_bytes((folder / "a" / "2.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"a/2.png is damaged .* run `dvc checkout --force"):
        save_timelapse(tmp_path / "film.gif", folder, 100)
    (folder / "a" / "2.png").unlink()
    with pytest.raises(UserError, match=r"epochs/a lacks pictures of some epochs"):
        save_timelapse(tmp_path / "film.gif", folder, 100)
    assert not list(tmp_path.glob("film.*"))
