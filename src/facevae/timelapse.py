"""An animation of a training, from the pictures of its epochs."""

import re
from pathlib import Path

from PIL import Image

from facevae.errors import UserError
from facevae.figures.film import check_suffix, save_animation

GAP = 8  # white pixels between two pictures of an epoch
LAST = 5  # the last epoch stays for as many frames


def save_timelapse(path: Path, folder: Path, milliseconds: int) -> int:
    """Write an animation with a frame an epoch; return the number of epochs.

    Parameters
    ----------
    path
        A GIF has 256 colours a frame; a WebP keeps all.
    folder
        Holds NAME/EPOCH.png. Each frame shows an epoch's pictures one below the other.
    milliseconds
        How long a frame stays. The last one stays five times as long.

    Raises
    ------
    UserError
        The folder has no pictures, a picture is missing or damaged, or the path has another suffix.
    """
    check_suffix(path)
    names = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    found = {name: sorted(_epochs(folder / name)) for name in names}
    if not any(found.values()):
        raise UserError(
            f"{folder} has no pictures of epochs: get them by `dvc checkout`, by `dvc pull`, or by `dvc repro train`"
        )
    epochs = max(found.values(), key=len)
    if incomplete := [name for name in names if found[name] != epochs]:
        raise UserError(f"{folder / incomplete[0]} lacks pictures of some epochs: run `dvc checkout {folder}`")
    frames = [_below_each_other([_read(folder / name / f"{epoch}.png") for name in names]) for epoch in epochs]
    durations = [*[milliseconds] * (len(frames) - 1), LAST * milliseconds]
    save_animation(path, frames, durations, lossless=True)
    return len(frames)


def _epochs(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.png") if re.fullmatch(r"\d+", path.stem)]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc checkout --force {path.parent.parent}`") from error


def _below_each_other(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of any size on one white frame."""
    width = max(picture.width for picture in pictures)
    height = sum(picture.height + GAP for picture in pictures) - GAP
    frame = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        frame.paste(picture, (0, top))
        top += picture.height + GAP
    return frame
