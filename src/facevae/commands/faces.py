"""Commands that draw pictures with a trained model, by the Python API."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

import facevae
from facevae.config.paths import DIRECTIONS, MODEL, PRIORS
from facevae.errors import UserError

commands = typer.Typer()

ModelOption = Annotated[Path, typer.Option("--model", help="The weights of the trained model.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")]
CropOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side of the centred square to keep, in pixels.", show_default="in proportion, as in training"
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed gives other faces.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0, max=2, help="Factor of the noise. Below 1: more typical, less varied faces.")
]
WithOption = Annotated[
    list[str] | None, typer.Option("--with", help="An attribute that the faces shall have. Repeat it for more.")
]
WithoutOption = Annotated[
    list[str] | None, typer.Option("--without", help="An attribute that the faces shall lack. Repeat it for more.")
]
PriorsOption = Annotated[
    Path | None, typer.Option(help="The file of fitted priors.", show_default=f"{PRIORS.name} beside the model")
]
PriorName = Literal["best", "normal", "mixture", "flow"]
Method = Literal["best", "original", "difference", "balanced", "joint"]  # "best", or one of facevae.evaluate.directions
COLUMNS = 8
MAX_SAMPLES = 3000  # more do not fit into one picture
MAX_STEPS = 300
TILE = 160  # pixels: the least size of an image in a picture, which shows few


@commands.command()
def sample(
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, max=MAX_SAMPLES, help="Number of faces to draw.")
    ] = 32,
    seed: SeedOption = 0,
    prior: Annotated[
        PriorName, typer.Option(help="What to draw latents from. best: what evaluate chose. normal: N(0, I).")
    ] = "best",
    temperature: TemperatureOption = 1.0,
    present: WithOption = None,
    absent: WithoutOption = None,
    priors: PriorsOption = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("samples.png"),
) -> None:
    """Draw new faces."""
    from facevae.figures.pictures import in_rows

    faces = facevae.load(model, priors=priors).sample(
        num_samples, seed=seed, prior=prior, temperature=temperature, present=present or [], absent=absent or []
    )
    _write(output, in_rows(faces, min(num_samples, COLUMNS)))


@commands.command()
def walk(
    num_stops: Annotated[int, typer.Option(min=2, max=MAX_STEPS, help="Number of faces to pass.")] = 6,
    num_steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Frames from one face to the next.")] = 12,
    num_faces: Annotated[int, typer.Option("--num-faces", "-n", min=1, max=16, help="Walks side by side.")] = 4,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    present: WithOption = None,
    absent: WithoutOption = None,
    priors: PriorsOption = None,
    model: ModelOption = MODEL,
    output: Annotated[Path, typer.Option("--output", "-o", help="The GIF or WebP file to write.")] = Path("walk.gif"),
) -> None:
    """Animate faces that turn into other faces and back, drawn by flow matching."""
    from facevae.figures.film import save_rows

    loaded = facevae.load(model, priors=priors)
    frames = loaded.walk(
        num_stops,
        num_steps,
        num_faces=num_faces,
        seed=seed,
        temperature=temperature,
        present=present or [],
        absent=absent or [],
    )
    with _writing(output):
        save_rows(output, _enlarged(frames))
    typer.echo(output)


@commands.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    crop: CropOption = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("reconstructions.png"),
) -> None:
    """Show images above their reconstructions."""
    loaded = facevae.load(model)
    pixels = loaded.prepare(images, crop=crop)
    _write(output, np.stack([pixels, loaded.reconstruct(pixels)]), row_labels=("original", "reconstruction"))


@commands.command()
def interpolate(
    first: Annotated[Path, typer.Argument(help="The image to start from.")],
    second: Annotated[Path, typer.Argument(help="The image to end with.")],
    num_steps: Annotated[
        int, typer.Option("--num-steps", "-n", min=2, max=MAX_STEPS, help="Number of faces between the two images.")
    ] = 8,
    crop: CropOption = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("interpolation.png"),
) -> None:
    """Blend one image into another through the latent space."""
    loaded = facevae.load(model)
    start, end = loaded.prepare([first, second], crop=crop)
    tiles = np.stack([start, *loaded.interpolate(start, end, num_steps), end])[None]
    _write(output, tiles, column_labels=("original", *[""] * num_steps, "original"))


@commands.command()
def edit(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    add: Annotated[list[str] | None, typer.Option(help="An attribute to add. Repeat it for more.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="An attribute to remove. Repeat it for more.")] = None,
    strength: Annotated[float, typer.Option(help="How far to go: a multiple of the attribute's direction.")] = 1.0,
    method: Annotated[Method, typer.Option(help="How directions are fitted. best: what evaluate chose.")] = "best",
    crop: CropOption = None,
    model: ModelOption = MODEL,
    directions: Annotated[
        Path | None,
        typer.Option(help="The file of fitted directions.", show_default=f"{DIRECTIONS.name} beside the model"),
    ] = None,
    output: OutputOption = Path("edit.png"),
) -> None:
    """Show an image, its reconstruction, and the reconstruction with attributes added and removed."""
    loaded = facevae.load(model, directions=directions)
    pixels = loaded.prepare(image, crop=crop)
    added, removed = dict.fromkeys(add or [], strength), dict.fromkeys(remove or [], strength)
    edited = loaded.edit(pixels, add=added, remove=removed, method=method)
    tiles = np.concatenate([pixels, loaded.reconstruct(pixels), edited])[None]
    _write(output, tiles, column_labels=("original", "reconstruction", "edited"))


def _write(
    path: Path, tiles: NDArray[np.uint8], row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> None:
    from facevae.figures.png import save_tiles

    if path.suffix.lower() != ".png":
        raise UserError(f"--output: {path} does not end in .png; pictures are PNG files")
    with _writing(path):
        save_tiles(path, _enlarged(tiles), row_labels=row_labels, column_labels=column_labels)
    typer.echo(path)


def _enlarged(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles (rows, columns, height, width, channels) by a whole factor, to a height of about `TILE`."""
    factor = max(1, TILE // tiles.shape[2])
    return tiles.repeat(factor, axis=2).repeat(factor, axis=3)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error}") from error
