"""Nothing is unpickled, no name in a file is a path, no secret is stored, and no other machine is served."""

import ast
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from conftest import ROOT, clean_environment, commit_all, free_port, small_params, small_tree
from PIL import Image

from facevae.config.paths import EVALUATE_METRICS, HISTORY, MODEL, TRAIN_METRICS
from facevae.config.yaml12 import Yaml12Loader
from facevae.data.preparation import prepare
from facevae.data.prepared import SPLITS
from facevae.data.sources.celeba import open_celeba
from facevae.data.sources.folder import open_folder
from facevae.data.sources.source import Source
from facevae.errors import UserError
from facevae.evaluate.directions import FittedDirections, load_directions, save_directions
from facevae.figures.gallery import FIGURES, WALK
from facevae.fingerprint import training_fingerprint
from facevae.model import checkpoint
from facevae.model.vae import VAE
from facevae.storage.tables import write_csv, write_json
from facevae.tracking.repository import Repository
from facevae.tracking.stage_run import open_run
from facevae.tracking.store import CREDENTIALS, without_credentials
from facevae.train.loop import Progress

CODE = [path for folder in ("src", "stages", "benchmarks", ".ci") for path in (ROOT / folder).rglob("*.py")]
UNSAFE_MODULES = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADING_MODULES = {"numpy", "pandas", "pickle", "torch", "yaml"}  # some of their functions unpickle: use full names
SHORT_NAMES = {"numpy", "pandas"}  # np and pd are allowed
LOADERS = "load|[Pp]ickle|dump|^(Unsafe|Full|C)?Loader$"
SAFE_CALLS = [
    r"torch\.load\(.*weights_only=True\)",
    r"yaml\.load\(.*Loader=(Yaml12Loader|getattr\(yaml, 'CSafeLoader', yaml\.SafeLoader\))\)",
    r"yaml\.(safe_load|safe_dump|dump)\(.*\)",
]
UNSAFE_CALLS = (
    r"(np|numpy|torch|pickle|yaml|pd|pandas)\.(\w*load\w*|\w*save|dumps?|\w*pickle\w*|Unpickler|Pickler)\(.*"
    r"|.*\.to_pickle\(.*"
)


def unsafe_code(text: str) -> list[str]:
    """The calls and imports in a module that could pickle or unpickle."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [ast.unparse(node) for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
            aliased = {alias.name for alias in node.names if alias.asname}
            found += [ast.unparse(node) for name in aliased - SHORT_NAMES if name.split(".")[0] in LOADING_MODULES]
        if isinstance(node, ast.ImportFrom):
            module = str(node.module).split(".")[0]
            loads = module in LOADING_MODULES and any(re.search(LOADERS, alias.name) for alias in node.names)
            found += [ast.unparse(node)] * (module in UNSAFE_MODULES or loads)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(ast.unparse(node))
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        if re.fullmatch(UNSAFE_CALLS, call, re.DOTALL) and not any(
            re.fullmatch(safe, call, re.DOTALL) for safe in SAFE_CALLS
        ):
            found.append(call)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_unpickles_anything(path: Path) -> None:
    assert unsafe_code(path.read_text()) == []
    assert issubclass(Yaml12Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(content)",
        "from pickle import loads",
        "pd.read_pickle(path)",
        "table.to_pickle(path)",
        "yaml.unsafe_load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, Loader=yaml.CLoader)",
        "import joblib",
        "import pickle as p",
        "import _pickle",
        "import torch as t",
        "from torch import load",
        "from yaml import unsafe_load",
        "from yaml import Loader",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "from dill import load",
    ],
)
def test_calls_that_unpickle_are_found(text: str) -> None:
    assert unsafe_code(text)


def test_mlflow_holds_no_pickle(project: Path) -> None:
    files = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()]
    files = [path for path in files if not path.name.startswith(".artifact.uploading.")]  # MLflow's, of a killed upload
    beginnings = {".png": b"\x89PNG", ".gif": b"GIF8", ".webp": b"RIFF", ".html": b"<!doctype html>"}
    assert {path.suffix for path in files} == {*beginnings, ""}
    for path in files:
        if path.suffix:
            assert path.read_bytes().startswith(beginnings[path.suffix])
        else:
            assert path.name == "MLmodel"
            assert not re.search("pickle|python_function|loader_module", path.read_text())
    with sqlite3.connect(project / "mlflow.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = database.execute(f'SELECT * FROM "{table}"').fetchall()
            assert not [value for row in rows for value in row if isinstance(value, bytes)], table


def read_grey(_position: int) -> Image.Image:
    return Image.new("RGB", (8, 8), "grey")


WATCH = """
import sys
sys.addaudithook(lambda event, values: print(values[0]) if event in ("open", "os.listdir", "os.scandir") else None)
from pathlib import Path
from facevae.data.prepared import SPLITS, PreparedSet
prepared = PreparedSet(Path("prepared")).verified()
print([prepared.images(split).shape for split in SPLITS], prepared.attributes("train").shape)
"""


def test_no_name_in_a_prepared_set_is_a_path(tmp_path: Path) -> None:
    names = [f"../../outside-{i}.jpg" for i in range(5)] + [f"/outside-{i}.jpg" for i in range(5)]
    source = Source(names, pd.DataFrame({"../outside": [0, 1] * 5}, index=names, dtype="uint8"), read_grey)
    params = small_params(data__source="folder", data__num_images=None)
    prepare(source, params.data, seed=0, target=tmp_path / "prepared")
    assert {path.name for path in tmp_path.rglob("*")} == {
        "prepared", "manifest.json", "attributes.csv", *(f"{split}.npy" for split in SPLITS)
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", WATCH]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "prepared/train.npy" in printed
    assert "outside" not in printed


def test_no_name_in_a_file_of_weights_is_a_path(tmp_path: Path) -> None:
    params = small_params()
    before = set(tmp_path.parent.rglob("*"))
    checkpoint.save(tmp_path / "vae", VAE(params.model, 8, 3), params.train, crop=None, fingerprint="../outside")
    directions = FittedDirections({"joint": {"../outside": torch.ones(3)}}, "joint")
    save_directions(tmp_path / "directions", directions, fingerprint="../outside")
    _, header = checkpoint.load(tmp_path / "vae")
    assert load_directions(tmp_path / "directions", fingerprint=header.fingerprint).by_method["joint"].keys() == {
        "../outside"
    }
    assert set(tmp_path.parent.rglob("*")) - before == {tmp_path / "vae", tmp_path / "directions"}


def test_progress_files_have_hexadecimal_names() -> None:
    fingerprint = training_fingerprint(small_params(), "../../outside", {"processor": "/outside"})
    assert re.fullmatch("[0-9a-f]{32}", fingerprint)


def pack(root: Path, members: dict[str, bytes]) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    (root / "list_attr_celeba.txt").write_text("1\nMale\n000001.jpg 1\n")


def test_zip_members_outside_the_image_folder_are_ignored(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    content = (write_images(["000001.jpg"]) / "000001.jpg").read_bytes()
    outside = [
        "../x.jpg",
        "/x.jpg",
        "img_align_celeba/../../x.jpg",
        "..\\x.jpg",
        "img_align_celeba/..\\x.jpg",
        "a/x.jpg",
    ]
    pack(tmp_path / "root", dict.fromkeys([*outside, "img_align_celeba/000001.jpg"], content))
    before = sorted(tmp_path.parent.rglob("*"))
    source = open_celeba(tmp_path / "root", None, official=False)
    assert source.names == ["000001.jpg"]
    assert source.read(0).size == (20, 24)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_links_to_images_are_followed_but_not_to_folders(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    """DVC may link images from its cache. A linked folder may lead anywhere, even back."""
    outside = write_images(["face.jpg"], folder="outside")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked.jpg").symlink_to(outside / "face.jpg")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    source = open_folder(root, None)
    assert source.names == ["linked.jpg"]
    assert source.read(0).size == (20, 24)


def test_a_revision_is_never_an_option_of_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    with pytest.raises(UserError, match="is not a commit of this repository"):
        Repository(tmp_path).named(f"--output={tmp_path / 'outside'}")
    assert not (tmp_path / "outside").exists()


SECRET = "p@ss/hunter2"  # characters that a password may have and an address should quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://user:{SECRET}@host:5000/path", "http://host:5000/path"),
        ("postgresql+psycopg://user:hunter2@host/mlflow?sslpassword=hunter2", "postgresql+psycopg://host/mlflow"),
        ("sqlite:////home/user/mlflow.db", "sqlite:////home/user/mlflow.db"),
        (
            "from https://hunter2@host/a to https://host/b?token=hunter2 it failed",
            "from https://host/a to https://host/b it failed",
        ),
        ("header value: 'Bearer t0ken-hunter2\\n'", "header value: 'Bearer ***\\n'"),
        ("/data/faces@home", "/data/faces@home"),
    ],
)
def test_credentials_are_removed_from_texts(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-hunter2\n")
    assert without_credentials(text) == shown


@pytest.fixture
def secretive(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a pipeline in a repository, with secrets wherever users keep them."""
    monkeypatch.chdir(tmp_path)
    for name in (*CREDENTIALS, "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"hunter2-{name}")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(project / "mlflow.db", tmp_path)  # a new one would take seconds
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/manifest.json").write_text("{}")
    root = "https://user:hunter2@host/images?token=hunter2"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small_tree(data__root=root, tracking__experiment="secrets")))
    for arguments in (["init"], ["config", "user.name", "test"], ["config", "user.email", "test@example.com"]):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    subprocess.run(["git", "remote", "add", "origin", "https://user:hunter2@host/repository.git"], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text("['remote \"team\"']\n    password = hunter2\n")
    commit_all(tmp_path, "Pipeline")
    return tmp_path


def log_stages() -> None:
    with open_run("train") as run:
        row = {"epoch": 1.0, "train_loss": 3.0, "validation_loss": 4.0}
        run.log_progress(Progress([row], {}))
        write_csv(HISTORY, pd.DataFrame([row]))
        write_json(TRAIN_METRICS, {"best_epoch": 1.0})
        MODEL.parent.mkdir(exist_ok=True)
        MODEL.write_bytes(b"weights")
    with open_run("evaluate"):
        write_json(EVALUATE_METRICS, {"ssim": 0.5})
    with open_run("figures"):
        for name in (*(f"{name}.png" for name in FIGURES), WALK):
            Image.new("RGB", (4, 4)).save(f"plots/{name}")


@pytest.mark.filterwarnings("ignore")
def test_no_secret_is_stored_or_printed(
    secretive: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    log_stages()
    files = [*secretive.glob("mlflow.db*"), *(path for path in secretive.rglob("mlartifacts/**/*") if path.is_file())]
    assert {path.name for path in files} >= {"mlflow.db", "losses.png", "MLmodel"}
    contents = {path.name: path.read_bytes() for path in files}
    assert any(b"https://host/images" in content for content in contents.values())
    assert [name for name, content in contents.items() if b"hunter2" in content] == []
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.usefixtures("secretive")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{SECRET}@127.0.0.1:9",
        "http://user:hunter2@127.0.0.1:9/?token=hunter2",
        "http://127.0.0.1:9",
        "mssql+nodriver://user:hunter2@127.0.0.1/mlflow?password=hunter2",
        "mssql+nodriver://user:hunter2@127.0.0.1:port/mlflow",
    ],
)
def test_a_failing_store_prints_no_secret(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2\n")  # the line break of a file, which requests shows
    if "user" in uri:
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    log_stages()
    assert "stage train continues untracked" in caplog.text
    told = caplog.text + "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    assert "hunter2" not in told
    assert "127.0.0.1" in told


@pytest.fixture
def ui(project: Path, tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    """The server of `make ui` on another port, and that port."""
    make = ["make", "--dry-run", "--no-print-directory", "ui"]
    recipe = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = re.sub(r"--port \d+", f"--port {(port := free_port())}", recipe.splitlines()[-1])
    assert str(port) in command
    command = command.replace(".venv/bin/mlflow", str(Path(sys.executable).with_name("mlflow")))
    environment = clean_environment() | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec env {command}"],
            cwd=project,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield psutil.Process(process.pid), port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status_for(port: int, host: str) -> int:
    """The status of the server's answer to a request under the name of a host."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})
        return connection.getresponse().status


@pytest.mark.slow
def test_mlflows_pages_serve_this_machine_alone(ui: tuple[psutil.Process, int], tmp_path: Path) -> None:
    process, port = ui
    deadline = time.monotonic() + 180
    while True:
        assert process.status() != psutil.STATUS_ZOMBIE, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        with suppress(OSError):
            status_for(port, "localhost")
            break
        time.sleep(0.1)
    family = [process, *process.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert status_for(port, f"localhost:{port}") == 200
    assert status_for(port, "elsewhere.example") == 403
