"""A run's model in MLflow's registry, with weights and code, so that MLflow can serve it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import facevae
from facevae.config.paths import DIRECTIONS, MODEL, PRIORS
from facevae.errors import UserError
from facevae.storage.sheet import png_of
from facevae.tracking import runs, store
from facevae.tracking.outputs import read_kept
from facevae.tracking.project_files import files_below
from facevae.tracking.registry import tag_published, versions_of
from facevae.tracking.repository import Repository
from facevae.tracking.state import State
from facevae.tracking.where import find_holder, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

LOCK = Path("requirements.lock")
PACKAGE = Path("src/facevae")
SERVED = Path(__file__).with_name("served_model.py")
WEIGHTS = (MODEL, PRIORS, DIRECTIONS)
REQUIREMENTS = (  # what the served model imports; a test compares
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
    "tqdm",
)


def publish(root: Path, name: str, registered_name: str, alias: str) -> str:
    """Register the model of a run, unless it is registered already, and give it an alias; return the model's address.

    Parameters
    ----------
    name
        The run's name or id, or the beginning of its fingerprint; empty: the work tree's run.
    registered_name
        The name in MLflow's registry; empty: that of the run's MLflow experiment.
    alias
        What servers ask for, such as champion. Another version that has it loses it.

    Raises
    ------
    UserError
        No run or several match, this clone does not have its state or weights, or the store fails.
    """
    run = find_run(name)
    state, _ = find_holder(Repository(root), run)
    registered_name = registered_name or state.experiment
    with store.session() as client:
        version = next((own for own in versions_of(client, run) if own.name == registered_name), None)
    if version is None:
        with tempfile.TemporaryDirectory() as folder:
            _gather(state, Path(folder))
            requirements = _pinned(state)
            with store.session() as client:
                version = _register(client, run, registered_name, Path(folder), requirements)
    with store.session() as client:
        client.set_registered_model_alias(registered_name, alias, version.version)
        tag_published(client, client.get_run(run.info.run_id))
    return f"models:/{registered_name}@{alias}"


def _gather(state: State, folder: Path) -> None:
    """Write the weights and the code of a state into a folder."""
    for path in WEIGHTS:
        content = read_kept(state, path.as_posix())
        if content is None:
            raise UserError(f"{path} of this state is not in DVC's cache on this machine: run `dvc pull`")
        (folder / path.name).write_bytes(content)
    for name, file in files_below(state.files / PACKAGE.as_posix()):
        target = folder / PACKAGE.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def _pinned(state: State) -> list[str]:
    """The served model's requirements as requirements.lock pins them, with the Python versions that each pin is for."""
    locked = [line.rstrip(" \\") for line in state.read(LOCK.as_posix()).decode().splitlines()]
    pinned = {name: [line for line in locked if line.startswith(f"{name}==")] for name in REQUIREMENTS}
    if missing := [name for name, lines in pinned.items() if not lines]:
        raise UserError(f"{LOCK} has no version of {', '.join(missing)}: run `make lock`")
    return [line for lines in pinned.values() for line in lines]


def _register(
    client: "MlflowClient", run: "Run", registered_name: str, folder: Path, requirements: list[str]
) -> "ModelVersion":
    """Add weights and code to the run's logged model, which so far only names the weights, and register it."""
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    linked = run.outputs.model_outputs if run.outputs is not None else []
    if not linked:
        raise UserError(f"{run.info.run_name}: the run has no model yet; run `facevae sync`")
    example = png_of(facevae.load(folder / MODEL.name).sample(1)[0])
    logged = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        name=MODEL.stem,
        model_id=linked[0].model_id,
        python_model=str(SERVED),
        artifacts={path.stem: str(folder / path.name) for path in WEIGHTS},
        code_paths=[str(folder / PACKAGE.name)],
        signature=_signature(),
        input_example=(pd.DataFrame({"image": [example]}), {"operation": "reconstruct"}),
        pip_requirements=requirements,
    )
    tags = {runs.FINGERPRINT_TAG: run.data.tags[runs.FINGERPRINT_TAG]}
    if not client.search_registered_models(f"name = '{registered_name}'"):
        client.create_registered_model(registered_name)
    return client.create_model_version(
        registered_name, logged.model_uri, run.info.run_id, tags, model_id=logged.model_id
    )


def _signature() -> "ModelSignature":
    """Image files in, PNG files out; the params choose the operation, and are those of `facevae.load`'s methods."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    images = Schema([ColSpec("binary", "image")])
    params = ParamSchema(
        [
            ParamSpec("operation", "string", "reconstruct"),
            ParamSpec("add", "string", [], shape=(-1,)),
            ParamSpec("remove", "string", [], shape=(-1,)),
            ParamSpec("strength", "double", 1.0),
            ParamSpec("method", "string", "best"),
            ParamSpec("num_samples", "long", 1),
            ParamSpec("seed", "long", 0),
            ParamSpec("prior", "string", "best"),
        ]
    )
    return ModelSignature(images, images, params)
