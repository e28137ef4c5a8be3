"""Commands on the project: its params, its pipeline's results, and its runs in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from facevae.config.paths import EDITOR, EPOCHS, PARAMS
from facevae.errors import UserError

commands = typer.Typer()

RunArgument = Annotated[
    str,
    typer.Argument(help="A run's name or id, or the start of its fingerprint.", show_default="the work tree's run"),
]
EXPERIMENT = "the MLflow experiment's"
TIMELAPSE = Path("timelapse.webp")


@commands.command()
def summary(params: Annotated[Path, typer.Option(help="The file that describes the model.")] = PARAMS) -> None:
    """Print the model's layers with their output shapes and numbers of parameters."""
    from facevae.config.params import load_params
    from facevae.summary import summarize

    loaded = load_params(params)
    typer.echo(summarize(loaded.model, loaded.data.image_size, loaded.data.channels))


@commands.command()
def timelapse(
    milliseconds: Annotated[int, typer.Option(min=20, max=60_000, help="How long each epoch is shown.")] = 400,
    epochs: Annotated[Path, typer.Option(help="The folder with the pictures of each epoch.")] = EPOCHS,
    output: Annotated[Path, typer.Option("--output", "-o", help="The WebP or GIF file to write.")] = TIMELAPSE,
) -> None:
    """Animate the training: its reconstructions and samples from epoch to epoch."""
    from facevae.timelapse import save_timelapse

    save_timelapse(output, epochs, milliseconds)
    typer.echo(output)


@commands.command()
def sync(
    rev: Annotated[list[str] | None, typer.Option(help="A commit or range to include. Repeat it for more.")] = None,
) -> None:
    """Give the work tree and every DVC experiment an MLflow run, and close the runs of dead processes."""
    from facevae.tracking.sync import sync as sync_runs

    sync_runs(_project(), rev or [], report=typer.echo)


@commands.command()
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


@commands.command()
def where(run: RunArgument = "") -> None:
    """Print the commit, data and weights of an MLflow run, and the commands that restore them."""
    from facevae.tracking.where import where as find_state

    typer.echo(find_state(_project(), run))


@commands.command()
def check(params: Annotated[Path, typer.Option(help="The file to check.")] = PARAMS) -> None:
    """Check params.yaml and the folder data.root, in clearer words than DVC's. `make repro` does so first."""
    from facevae.config.data_root import data_root
    from facevae.config.params import load_params
    from facevae.config.processor import require_processor

    loaded = load_params(params)
    require_processor(loaded.train)
    data_root(loaded.data)


@commands.command()
def publish(
    alias: Annotated[str, typer.Option(help="What servers ask for. Another version that has it loses it.")],
    run: RunArgument = "",
    name: Annotated[str, typer.Option(help="The model's name in the registry.", show_default=EXPERIMENT)] = "",
) -> None:
    """Register a run's model in MLflow with weights and code, so that `mlflow models serve` can load it."""
    from facevae.tracking.publishing import publish as register

    typer.echo(register(_project(), run, name, alias))


@commands.command()
def mend() -> None:
    """Repair the files that DVC left half-written when it was killed."""
    from facevae.tracking.mending import mend as mend_files

    for done in mend_files(_project()):
        typer.echo(done)


@commands.command()
def editor() -> None:
    """Print the address of the face editor, and open it in a browser if this session has one."""
    from facevae.tracking.pages import show

    if not EDITOR.is_file():
        raise UserError(f"{EDITOR} is not in {Path.cwd()}: run `dvc repro` in the root of the project")
    typer.echo(EDITOR.resolve().as_uri())
    show(EDITOR.resolve().as_uri())


@commands.command()
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


def _project() -> Path:
    if not Path("dvc.yaml").is_file():
        raise UserError(f"dvc.yaml is not in {Path.cwd()}: run this from the root of the project")
    return Path()
