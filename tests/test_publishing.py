"""A published model, served by MLflow over HTTP, answers what the Python API returns."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import ROOT, clean_environment, disc_images, free_port
from numpy.typing import NDArray
from PIL import Image

import facevae
from facevae.errors import UserError
from facevae.tracking import runs, store
from facevae.tracking.publishing import REQUIREMENTS, publish
from facevae.tracking.registry import PUBLISHED_TAG
from facevae.tracking.sync import sync
from facevae.tracking.where import where

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and its dependencies warn about each other

DEADLINE_SECONDS = 180


@pytest.fixture
def clone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the project with a store of its own, in which the project's state has a run."""
    monkeypatch.chdir(copy)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    (copy / "mlflow.db").unlink()
    synchronize()
    return copy


def synchronize() -> str:
    lines: list[str] = []
    sync(Path(), [], lines.append)
    return "\n".join(lines)


def run_name() -> str:
    (run,) = runs.find_runs(store.connect())
    return str(run.info.run_name)


@contextmanager
def served(folder: Path, model: str) -> Iterator[str]:
    """Serve a model with MLflow's command in the tests' environment, and give its address."""
    port = free_port()
    environment = clean_environment() | {
        "MLFLOW_TRACKING_URI": store.tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:
                log.seek(0)
                assert process.poll() is None and time.monotonic() < deadline, log.read().decode()  # noqa: PT018
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(address: str, files: list[bytes], **params: object) -> NDArray[np.uint8]:
    """The pictures that a server answers with."""
    rows = [[base64.b64encode(file).decode()] for file in files]
    request = {"dataframe_split": {"columns": ["image"], "data": rows}, "params": params}
    header = {"Content-Type": "application/json"}
    with urlopen(Request(address, json.dumps(request).encode(), header), timeout=60) as answer:
        predictions: list[dict[str, Any]] = json.load(answer)["predictions"]
    contents = [base64.b64decode(prediction["image"]) for prediction in predictions]
    return np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents])


def png_files(images: NDArray[np.uint8]) -> list[bytes]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        files.append(buffer.getvalue())
    return files


@pytest.mark.usefixtures("clone")
def test_a_served_model_answers_what_the_python_api_returns(tmp_path: Path) -> None:
    address = publish(Path(), run_name(), "", "champion")
    assert address == "models:/tests@champion"
    model = facevae.load("models/vae.safetensors")
    images = disc_images(3, size=16)
    with served(tmp_path, address) as server:
        reconstructed = ask(server, png_files(images), operation="reconstruct")
        edited = ask(server, png_files(images), operation="edit", add=["Smiling"], remove=["Eyeglasses"], strength=1.5)
        sampled = ask(server, [], operation="sample", num_samples=5, seed=4_000_000_000)
        with pytest.raises(HTTPError, match="400") as refused:
            ask(server, png_files(images), operation="edit", add=["Wings"])
        reason = refused.value.read().decode()  # while the server lives
    np.testing.assert_array_equal(reconstructed, model.reconstruct(images))
    np.testing.assert_array_equal(edited, model.edit(images, add={"Smiling": 1.5}, remove={"Eyeglasses": 1.5}))
    np.testing.assert_array_equal(sampled, model.sample(5, seed=4_000_000_000))
    assert not np.array_equal(edited, reconstructed)
    assert "Wings" in reason


def test_a_model_is_registered_once_and_where_and_sync_know_it(clone: Path) -> None:
    name = run_name()
    publish(Path(), name, "", "champion")
    publish(Path(), name, "", "challenger")
    client = store.connect()
    (version,) = client.search_model_versions("name = 'tests'")
    assert "tests version 1 (challenger, champion)" in where(Path(), name)
    assert where(Path(), "") == where(Path(), name)  # the work tree's run
    assert "nothing to do" in synchronize()
    client.delete_registered_model_alias("tests", "champion")  # as in MLflow's pages
    assert "published versions" in synchronize()
    (run,) = runs.find_runs(client)
    assert run.data.tags[PUBLISHED_TAG] == "tests version 1 (challenger)"
    files = [path for path in (clone / "mlartifacts").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files if path.suffix == ".safetensors") == [
        "directions.safetensors",
        "priors.safetensors",
        "vae.safetensors",
    ]
    assert not {path.suffix for path in files} & {".pkl", ".pickle", ".pth", ".pt", ".pyc"}
    requirements = next(path for path in files if path.name == "requirements.txt").read_text().splitlines()
    locked = (ROOT / "requirements.lock").read_text().replace("'", '"').replace(" ;", ";").splitlines()
    assert {name for name in requirements if name.split("==")[0] in REQUIREMENTS} == set(requirements)
    assert set(requirements) <= {line.rstrip(" \\") for line in locked}
    client.delete_model_version("tests", version.version)
    assert "published versions" in synchronize()
    assert "published" not in where(Path(), name)


def test_missing_weights_are_named_and_nothing_is_registered(clone: Path) -> None:
    name = run_name()
    for path in (clone / "models").glob("*.safetensors"):
        path.unlink()
    for path in (clone / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match=r"models/vae.safetensors of this state is not in DVC's cache .* `dvc pull`"):
        publish(Path(), name, "", "champion")
    assert not store.connect().search_registered_models()


def test_the_requirements_are_what_the_served_model_imports(trained: Path) -> None:
    """Compared with the modules that a process has loaded after each operation.

    pynvml and pyarrow are left out: torch and pandas import them where they are installed, and need neither.
    """
    script = f"""
import sys
import numpy as np, facevae
model = facevae.load({str(trained / "models" / "vae.safetensors")!r})
images = np.zeros((1, *model.image_shape), np.uint8)
model.reconstruct(images), model.edit(images, add={{"Smiling": 1.0}}), model.sample(2)
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    loaded = [name for name in loaded if name != "pyarrow"]
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    direct = {line.strip().split(">=")[0].strip('"') for line in lines if line.startswith('    "')}
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    assert {name for name in direct if modules.get(name, name) in loaded} | {"mlflow"} == set(REQUIREMENTS)
