"""Shared by the tests: small complete params, small images, clones that run the pipeline, and the real data."""

import hashlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from chromium import BROWSER, MILLISECONDS, started_browser
from filelock import FileLock
from PIL import Image
from readers import disc_images as disc_images

from facevae.config.params import parse_params
from facevae.config.schema import Params
from facevae.crop import Crop
from facevae.data.preparation import prepare
from facevae.data.sources.dispatch import open_source
from facevae.errors import UserError
from facevae.evaluate import inception
from facevae.evaluate.directions import FittedDirections, fit_directions, save_directions
from facevae.model import checkpoint
from facevae.model.vae import Posterior, new_model
from facevae.priors.fitting import fit_priors, save_priors
from facevae.tracking import stage_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser: neither chromium, chromium-browser nor google-chrome is installed"
)

for variable in [name for name in os.environ if name.startswith("GIT_") and name != "GIT_SSL_CAINFO"]:
    del os.environ[variable]  # set in a Git hook, where the tests would work on the surrounding repository
os.environ["GIT_CONFIG_GLOBAL"] = os.devnull
os.environ.pop("MPLBACKEND", None)  # a notebook's, at which tests that import matplotlib first would fail
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "seed": 7,
    "data": {
        "source": "avatars",
        "root": "data/raw",
        "num_images": 40,
        "image_size": 8,
        "channels": 3,
        "crop": None,
        "split": "random",
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "keep_duplicates_together": False,
        "on_bad_image": "fail",
    },
    "model": {
        "channels": [8, 16],
        "strides": [2, 2],
        "kernel_size": 4,
        "decoder_kernel_size": 4,
        "residual_blocks": 0,
        "latent_dim": 3,
        "normalization": "none",
        "negative_slope": 0.01,
        "dropout": 0.0,
        "refinement_steps": 0,
    },
    "train": {
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": None,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "muon_learning_rate": None,
        "momentum": None,
        "learning_rate_decay": "none",
        "learning_rate_warmup_steps": 0,
        "likelihood": "squared_error",
        "num_importance_samples": 1,
        "binarization": "none",
        "horizontal_flip": False,
        "beta": 1.0,
        "kl_warmup_epochs": 0,
        "average_decay": None,
        "clip_gradient_norm": None,
        "skip_gradient_norm": None,
        "max_skipped_steps": 5,
        "precision": "float32",
        "device": "cpu",
        "numerics": "native",
        "num_threads": 1,  # tensors are tiny, so a second thread would only cost time
        "launcher": "python",
    },
    "sharpen": {
        "epochs": 0,
        "batch_size": 4,
        "learning_rate": 0.001,
        "muon_learning_rate": 0.01,
        "discriminator_channels": [8, 16],
        "adversarial_weight": 0.5,
        "feature_weight": 20.0,
        "squared_error_weight": 120.0,
        "colour_weight": 200.0,
        "grain_weight": 5.0,
    },
    "classifier": {"epochs": 1, "batch_size": 8, "learning_rate": 0.003},
    "evaluate": {
        "split": "test",
        "batch_size": 5,
        "num_importance_samples": 3,
        "num_samples": 8,
        "temperature": 1.0,
        "attributes": ["Eyeglasses"],
        "strengths": [1.0, 2.0],
        "num_edited_images": 4,
        "original_lambda": 0.5,
        "inception_weights": None,
    },
    "figures": {
        "split": "test",
        "num_reconstructions": 4,
        "num_samples": 6,
        "temperature": 0.9,
        "num_interpolations": 2,
        "interpolation_steps": 3,
        "attributes": ["Eyeglasses"],
        "strengths": [-1, 0, 1],
        "latent_map_attributes": ["Eyeglasses"],
    },
    "tracking": {"experiment": "tests"},
}

MUON: dict[str, Any] = {
    "train__optimizer": "muon",
    "train__muon_learning_rate": 0.01,
    "train__momentum": 0.9,
}  # changes of SMALL


SLOW_FIXTURES = {"project", "copy", "experiments", "inception_weights", "together", "browser"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--num-experiments", type=int, default=2, help="how many DVC experiments the tests queue")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests slow whose fixtures run the pipeline by DVC or take seconds to make."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def small_tree(**changes: object) -> dict[str, Any]:
    """The small params as plain values. Keyword arguments change them, as section__key or key."""
    tree = yaml.safe_load(yaml.safe_dump(SMALL))
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = tree
        for part in sections:
            section = section[part]
        section[key] = value
    return dict(tree)


def small_params(**changes: object) -> Params:
    """The small params, validated."""
    return parse_params(small_tree(**changes), "params.yaml")


def clone(target: Path, **changes: object) -> Path:
    """A new repository with the files of this checkout that Git tracks or would track, and small params."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    target.mkdir(exist_ok=True)
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    small = small_tree(data__image_size=16, figures__attributes=["Eyeglasses", "Smiling"], **changes)
    (target / "params.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    init_repository(target)
    return target


def init_repository(folder: Path) -> None:
    """Turn a folder into a Git repository, with everything in its first commit."""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "config", key, value], cwd=folder, check=True)
    commit_all(folder, "Start")


def change_params(folder: Path, section: str, key: str, value: object) -> None:
    path = folder / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree[section][key] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def commit_all(folder: Path, message: str) -> None:
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", message], cwd=folder, check=True)


def clean_environment() -> dict[str, str]:
    """The variables of a user's shell, with the programs of the tests' own environment."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "PYTHON"))}
    return own | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])}


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC and return its output. The stages run in the tests' interpreter."""
    with tempfile.TemporaryFile() as said:  # the workers of DVC's queue would hold a pipe open
        result = subprocess.run(
            ["dvc", *arguments], cwd=folder, env=clean_environment(), stdout=said, stderr=subprocess.STDOUT, check=False
        )
        said.seek(0)
        output = said.read().decode()
    if result.returncode:
        raise RuntimeError(output)
    return output


def run_stage(name: str) -> None:
    """Run a stage's script in the working directory, in this process, without DVC."""
    runpy.run_path(f"stages/{name}.py", run_name="__main__")


def failure_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage that must fail, and return the one line that it prints."""
    with pytest.raises(SystemExit) as ended:
        run_stage(name)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1, lines
    assert len(lines) == 1, lines
    return lines[0]


def emptied(_content: bytes) -> bytes:
    """Content as a full disk may leave it."""
    return b""


def cut(content: bytes) -> bytes:
    """Content without its last bytes."""
    return content[:-5]


def flip_a_bit(content: bytes) -> bytes:
    """Content as a failing disk may return it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@contextmanager
def mlflow_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """Run an MLflow server on the store in a folder, and give its address."""
    port = port or free_port()
    environment = clean_environment() | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes that our pages do not need
    }
    options = [
        "--backend-store-uri",
        "sqlite:///mlflow.db",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 180
            while True:
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):  # it has already ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose pipeline has been run and whose results are committed.

    The first test process that needs it makes it, for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "project"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".done").exists():
            dvc(clone(folder), "repro")
            commit_all(folder, "Results")
            folder.with_suffix(".done").touch()
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """A copy of the clone `project`, for tests that change something."""
    return shutil.copytree(project, tmp_path / "copy")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Run stages in a folder, without MLflow, which takes seconds to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stage_run, "open_run", lambda _: nullcontext(SimpleNamespace(log_progress=lambda _: None)))
        patch.delenv("DVC_ROOT", raising=False)
        yield


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages but `figures` have been run on a tiny set."""
    folder = tmp_path_factory.mktemp("evaluated")
    tree = small_tree(data__num_images=20, data__image_size=16)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name in ("src", "stages"):
        (folder / name).symlink_to(ROOT / name)
    with working_in(folder):
        for name in ("prepare", "classifier", "train", "evaluate"):
            run_stage(name)
    return folder


@pytest.fixture
def work_tree(evaluated: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the folder `evaluated`, as the working directory."""
    folder = shutil.copytree(evaluated, tmp_path / "work", symlinks=True)
    with working_in(folder):
        yield folder


@pytest.fixture(scope="session")
def experiments(project: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A clone with a new MLflow store, in which DVC's queue has run the experiments beta-1, beta-2, ..., two at a time.

    Tests that use it are in the group "experiments", and so in one process.
    """
    number = pytestconfig.getoption("--num-experiments")
    folder = tmp_path_factory.mktemp("experiments") / "clone"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    for i in range(1, number + 1):
        dvc(folder, "exp", "run", "--queue", "--name", f"beta-{i}", "--set-param", f"train.beta={i}.5")
    dvc(folder, "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 240 * number
    while "Running" in (status := dvc(folder, "queue", "status")) or "Queued" in status:
        assert time.monotonic() < deadline, status
        time.sleep(5)  # asking costs DVC a second of CPU time
    assert status.count("Success") == number, status
    for process in psutil.process_iter(["cwd"]):  # an idle worker does not always end
        if str(process.info["cwd"]).startswith(str(folder)):
            process.kill()
    return folder


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file with random weights of the Inception network, which is taken for that of the real ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    torch.manual_seed(0)
    for name, weight in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        yield path


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The machine's Chromium, without a window."""
    from playwright.sync_api import expect

    expect.set_options(timeout=MILLISECONDS)
    with started_browser() as browser:
        yield browser


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes image files of discs into a folder below tmp_path and returns the folder."""

    def write(names: list[str], folder: str = "images", size: tuple[int, int] = (20, 24)) -> Path:
        target = tmp_path / folder
        for i, name in enumerate(names):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = disc_images(1, max(size), seed=i)[0]
            Image.fromarray(pixels[: size[1], : size[0]]).save(path)
        return target

    return write


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of avatars. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("avatars") / "prepared"
    params = small_params()
    prepare(open_source(params.data, params.seed), params.data, params.seed, folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model for 8 x 8 images, its directions and priors in models/, and the images a.png and b.jpg."""
    folder = tmp_path_factory.mktemp("trained")
    params = small_params()
    model = new_model(params.model, 8, 3, seed=0)
    checkpoint.save(
        folder / "models" / "vae.safetensors", model, params.train, Crop(side=12, raw_side=20), fingerprint="abc"
    )
    attributes = pd.DataFrame({"Smiling": [0, 1, 0, 1], "Eyeglasses": [0, 0, 1, 1]})
    posteriors = Posterior(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 3))
    directions = FittedDirections(fit_directions(posteriors.mean, attributes, 0.5), "joint")
    save_directions(folder / "models" / "directions.safetensors", directions, fingerprint="abc")
    labels = torch.from_numpy(2 * attributes.to_numpy(dtype=np.float32) - 1)
    priors = fit_priors(posteriors, posteriors, labels, tuple(attributes.columns), lambda _: 0.0, num_samples=4, seed=0)
    save_priors(folder / "models" / "priors.safetensors", priors, fingerprint="abc")
    for name, pixels in zip(("a.png", "b.jpg"), disc_images(2, size=20), strict=True):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def refusal(prepared: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that prepares tmp_path / "raw", which must fail, over a prepared set, and returns the error's message.

    It checks that the prepared set keeps its bytes and that no other file is left. Its arguments are the source and
    other data params.
    """

    def refuse(source: str, **changes: object) -> str:
        target = shutil.copytree(prepared, tmp_path / "data" / "prepared")
        data = {"source": source, "root": str(tmp_path / "raw"), "num_images": None, **changes}
        params = small_params(**{f"data__{key}": value for key, value in data.items()})
        with pytest.raises(UserError) as error:
            prepare(open_source(params.data, params.seed), params.data, params.seed, target)
        assert sorted(target.parent.iterdir()) == [target]
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {
            path.name: path.read_bytes() for path in prepared.iterdir()
        }
        return str(error.value)

    return refuse


def shared_data(name: str) -> Path:
    """A folder of real images beside the checkout. The test is skipped if it is absent."""
    path = SHARED_DATA / name
    if not path.is_dir():
        pytest.skip(f"the real images {name} are not beside this checkout")
    return path
