"""The `facevae` command: use a trained model, look at one before it is trained, and keep MLflow in step with DVC."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from facevae.config.paths import DIRECTIONS, MODEL, PARAMS, PRIORS
from facevae.errors import UserError, reported_errors

if TYPE_CHECKING:
    from facevae.model.checkpoint import CheckpointHeader

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ModelOption = Annotated[Path, typer.Option("--model", help="The trained model.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")]
CropOption = Annotated[
    int | None, typer.Option(min=1, help="Side of the centred square to take, in pixels. [default: as in training]")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed gives other samples.")]
PriorName = Literal["normal", "mixture", "flow"]
Method = Literal["original", "difference", "balanced", "joint"]  # as in facevae.evaluate.directions
COLUMNS = 8
MAX_SAMPLES = 3000  # as many as a picture holds, and memory
MAX_STEPS = 300
MAX_STRENGTH = 1000.0  # far beyond any face, and far from what float32 cannot hold
TILE = 160  # pixels that an image should measure in a picture: few are shown at a time


@app.command()
def summary(
    params: Annotated[Path, typer.Option(help="The parameters that describe the model.")] = PARAMS,
) -> None:
    """Print the layers of the model of params.yaml with their output shapes and parameter counts."""
    from facevae.config.params import load_params
    from facevae.summary import summarize

    loaded = load_params(params)
    typer.echo(summarize(loaded.model, loaded.data.image_size, loaded.data.channels))


@app.command()
def sample(
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, max=MAX_SAMPLES, help="How many.")] = 32,
    seed: SeedOption = 0,
    prior: Annotated[
        PriorName | None, typer.Option(help="What to draw latents from. [default: the one that evaluate found best]")
    ] = None,
    priors: Annotated[Path | None, typer.Option(help=f"[default: {PRIORS.name} beside the model]")] = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("samples.png"),
) -> None:
    """Draw faces from a prior."""
    from facevae.figures import pictures
    from facevae.model import checkpoint
    from facevae.priors.fitting import load_priors

    loaded, header = checkpoint.load(model)
    known = load_priors(priors or model.with_name(PRIORS.name), fingerprint=header.fingerprint)
    chosen = known.priors[prior or known.best]
    _write(output, pictures.sample(loaded, chosen, num_samples, min(num_samples, COLUMNS), seed))


@app.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    crop: CropOption = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("reconstructions.png"),
) -> None:
    """Show images, and below each what the model makes of it."""
    from facevae.figures import pictures
    from facevae.model import checkpoint

    loaded, header = checkpoint.load(model)
    pixels = _read(images, header, crop)
    _write(output, pictures.reconstruct(loaded, pixels), row_labels=("original", "reconstruction"))


@app.command()
def interpolate(
    first: Annotated[Path, typer.Argument(help="The image to start from.")],
    second: Annotated[Path, typer.Argument(help="The image to arrive at.")],
    num_steps: Annotated[
        int, typer.Option("--num-steps", "-n", min=2, max=MAX_STEPS, help="Pictures from the one to the other.")
    ] = 8,
    crop: CropOption = None,
    model: ModelOption = MODEL,
    output: OutputOption = Path("interpolation.png"),
) -> None:
    """Lead from one image to another through the latent space."""
    from facevae.figures import pictures
    from facevae.model import checkpoint

    loaded, header = checkpoint.load(model)
    pixels = _read([first, second], header, crop)
    tiles = pictures.interpolate(loaded, pixels[:1], pixels[1:], num_steps)
    _write(output, tiles, column_labels=("original", *[""] * num_steps, "original"))


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    add: Annotated[list[str] | None, typer.Option(help="An attribute to add; may be given several times.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="An attribute to take away; likewise.")] = None,
    strength: Annotated[float, typer.Option(help="Multiple of the attribute's direction.")] = 1.0,
    method: Annotated[
        Method | None, typer.Option(help="How directions are fitted. [default: as evaluate found best]")
    ] = None,
    crop: CropOption = None,
    model: ModelOption = MODEL,
    directions: Annotated[Path | None, typer.Option(help=f"[default: {DIRECTIONS.name} beside the model]")] = None,
    output: OutputOption = Path("edit.png"),
) -> None:
    """Show an image, its reconstruction, and the reconstruction with attributes added and removed."""
    from facevae.evaluate.directions import load_directions
    from facevae.figures import pictures
    from facevae.model import checkpoint

    if not add and not remove:
        raise UserError("nothing to do: give --add ATTRIBUTE or --remove ATTRIBUTE")
    if both := set(add or []) & set(remove or []):
        raise UserError(f"{', '.join(sorted(both))}: to be added and removed at once; choose one")
    if not abs(strength) <= MAX_STRENGTH:  # so written, it catches NaN
        raise UserError(f"--strength: {strength} must lie between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}")
    loaded, header = checkpoint.load(model)
    path = directions or model.with_name(DIRECTIONS.name)
    fitted = load_directions(path, fingerprint=header.fingerprint)
    known = fitted.by_method[method or fitted.best]
    steps = dict.fromkeys(add or [], strength) | dict.fromkeys(remove or [], -strength)
    tiles = pictures.edit_image(loaded, _read([image], header, crop)[0], known, steps)
    _write(output, tiles, column_labels=("original", "reconstruction", "edited"))


@app.command()
def sync(
    rev: Annotated[list[str] | None, typer.Option(help="A commit to give its run as well; may be repeated.")] = None,
) -> None:
    """Give every DVC experiment and the work tree its MLflow run, and close the runs of dead processes."""
    from facevae.tracking.sync import sync as sync_runs

    sync_runs(_project(), rev or [], report=typer.echo)


@app.command()
def where(run: Annotated[str, typer.Argument(help="Name or id of a run, or the start of its fingerprint.")]) -> None:
    """Tell which commit, data and weights an MLflow run stands for, and how to restore them."""
    from facevae.tracking.where import where as find_state

    typer.echo(find_state(_project(), run))


@app.command()
def mend() -> None:
    """Let DVC start again after it was killed while it wrote one of its own files."""
    from facevae.tracking.mending import mend as mend_files

    for done in mend_files(_project()):
        typer.echo(done)


def run() -> None:
    """Run the command; what is the user's to mend is told in one message."""
    with reported_errors("ask for fewer pictures at a time, or take a smaller model"):
        app()


def _project() -> Path:
    if not Path("dvc.yaml").is_file():
        raise UserError(f"dvc.yaml is not in {Path.cwd()}: run from the root of the project")
    return Path()


def _read(paths: list[Path], header: "CheckpointHeader", crop: int | None) -> NDArray[np.uint8]:
    """Images as the model saw its own, of shape (N, height, width, channels)."""
    from facevae.data.image_file import BadImageError, fit_image, read_image
    from facevae.model.binarization import binarize

    pixels = []
    for path in paths:
        try:
            pixels.append(fit_image(read_image(path), header.image_size, header.image_channels, crop or header.crop))
        except BadImageError as error:
            raise UserError(f"{path} cannot be used: {error}") from error
    return binarize(np.stack(pixels), header.binarization, seed=0)


def _write(
    path: Path, tiles: NDArray[np.uint8], row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> None:
    from facevae.figures.png import save_tiles

    if path.suffix.lower() != ".png":
        raise UserError(f"--output: {path} does not end in .png, and pictures are written as PNG")
    factor = max(1, TILE // tiles.shape[2])
    tiles = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    try:
        save_tiles(path, tiles, row_labels=row_labels, column_labels=column_labels)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error}") from error
    typer.echo(path)
