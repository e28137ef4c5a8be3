"""The `facevae` command, which uses the Python API for all that a trained model does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

import facevae
from facevae.config.paths import DIRECTIONS, EDITOR, EPOCHS, MODEL, PARAMS, PRIORS
from facevae.errors import UserError, reported_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

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
RunArgument = Annotated[
    str,
    typer.Argument(help="A run's name or id, or the start of its fingerprint.", show_default="the work tree's run"),
]
EXPERIMENT = "the MLflow experiment's"
TIMELAPSE = Path("timelapse.webp")
COLUMNS = 8
MAX_SAMPLES = 3000  # more do not fit into one picture
MAX_STEPS = 300
TILE = 160  # pixels: the least size of an image in a picture, which shows few


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(facevae.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Use a trained model, look at one before training, and keep MLflow in step with DVC."""


@app.command()
def summary(params: Annotated[Path, typer.Option(help="The file that describes the model.")] = PARAMS) -> None:
    """Print the model's layers with their output shapes and numbers of parameters."""
    from facevae.config.params import load_params
    from facevae.summary import summarize

    loaded = load_params(params)
    typer.echo(summarize(loaded.model, loaded.data.image_size, loaded.data.channels))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def timelapse(
    milliseconds: Annotated[int, typer.Option(min=20, max=60_000, help="How long each epoch is shown.")] = 400,
    epochs: Annotated[Path, typer.Option(help="The folder with the pictures of each epoch.")] = EPOCHS,
    output: Annotated[Path, typer.Option("--output", "-o", help="The WebP or GIF file to write.")] = TIMELAPSE,
) -> None:
    """Animate the training: its reconstructions and samples from epoch to epoch."""
    from facevae.timelapse import save_timelapse

    save_timelapse(output, epochs, milliseconds)
    typer.echo(output)


@app.command()
def sync(
    rev: Annotated[list[str] | None, typer.Option(help="A commit or range to include. Repeat it for more.")] = None,
) -> None:
    """Give the work tree and every DVC experiment an MLflow run, and close the runs of dead processes."""
    from facevae.tracking.sync import sync as sync_runs

    sync_runs(_project(), rev or [], report=typer.echo)


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="What to vary, within which ranges, and the metric to improve.")],
) -> None:
    """Run trials whose params Optuna suggests, each as a DVC experiment; continue where the search stopped."""
    try:
        from facevae.search.guided import search as run_trials
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("facevae search needs Optuna, which is not installed: pip install -e '.[search]'") from None

    run_trials(_project(), file, report=typer.echo)


@app.command()
def where(run: RunArgument = "") -> None:
    """Print the commit, data and weights of an MLflow run, and the commands that restore them."""
    from facevae.tracking.where import where as find_state

    typer.echo(find_state(_project(), run))


@app.command()
def check(params: Annotated[Path, typer.Option(help="The file to check.")] = PARAMS) -> None:
    """Check params.yaml and the folder data.root, in clearer words than DVC's. `make repro` does so first."""
    from facevae.config.data_root import data_root
    from facevae.config.params import load_params
    from facevae.config.processor import require_processor

    loaded = load_params(params)
    require_processor(loaded.train)
    data_root(loaded.data)


@app.command()
def publish(
    alias: Annotated[str, typer.Option(help="What servers ask for. Another version that has it loses it.")],
    run: RunArgument = "",
    name: Annotated[str, typer.Option(help="The model's name in the registry.", show_default=EXPERIMENT)] = "",
) -> None:
    """Register a run's model in MLflow with weights and code, so that `mlflow models serve` can load it."""
    from facevae.tracking.publishing import publish as register

    typer.echo(register(_project(), run, name, alias))


@app.command()
def mend() -> None:
    """Repair the files that DVC left half-written when it was killed."""
    from facevae.tracking.mending import mend as mend_files

    for done in mend_files(_project()):
        typer.echo(done)


@app.command()
def editor() -> None:
    """Print the address of the face editor, and open it in a browser if this session has one."""
    from facevae.tracking.pages import show

    if not EDITOR.is_file():
        raise UserError(f"{EDITOR} is not in {Path.cwd()}: run `dvc repro` in the root of the project")
    typer.echo(EDITOR.resolve().as_uri())
    show(EDITOR.resolve().as_uri())


@app.command()
def pages(
    wait: Annotated[bool, typer.Option(help="Wait for the server, then open the page in a browser too.")] = False,
) -> None:
    """Print the address of the project's runs in MLflow's pages."""
    from facevae.config.params import load_params
    from facevae.tracking.pages import address_of_runs, server_address, show, wait_for

    _project()
    server = server_address()
    if wait:
        wait_for(server)
    address = address_of_runs(server, load_params().tracking.experiment)
    typer.echo(address)
    if wait:
        show(address)


def run() -> None:
    """Run the command; turn user errors into one-line messages."""
    with reported_errors("ask for fewer faces at a time, or use a smaller model"):
        app()


def _project() -> Path:
    if not Path("dvc.yaml").is_file():
        raise UserError(f"dvc.yaml is not in {Path.cwd()}: run this from the root of the project")
    return Path()


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
