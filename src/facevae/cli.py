"""The `facevae` command."""

from typing import Annotated

import typer

import facevae
from facevae.commands import faces, project
from facevae.errors import reported_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(faces.commands)
app.add_typer(project.commands)


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


def run() -> None:
    """Run the command; turn user errors into one-line messages."""
    with reported_errors("ask for fewer faces at a time, or use a smaller model"):
        app()
