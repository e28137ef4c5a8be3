import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, small_params, small_tree

from facevae import fingerprint
from facevae.config.schema import Params
from facevae.errors import UserError
from facevae.fingerprint import inputs_digest, refuse_change

BASE = small_params()


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def training_fingerprint(params: Params, data_digest: str, **platform: str) -> str:
    return fingerprint.training_fingerprint(params, data_digest, platform)


@pytest.mark.parametrize(
    "change",
    [
        {"train__beta": 2.0},
        {"model__latent_dim": 4},
        {"seed": 8},
        {"train__num_threads": 3},
        {"sharpen__epochs": 1},
    ],
)
def test_training_params_change_the_fingerprint(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") != training_fingerprint(BASE, "data")


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate__split": "validation"},
        {"figures__num_samples": 7},
        {"data__root": "elsewhere"},
        {"train__launcher": "torchrun"},
        {"sharpen__learning_rate": 0.5},  # without effect, since sharpen.epochs is 0
    ],
)
def test_params_of_other_stages_keep_the_fingerprint(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") == training_fingerprint(BASE, "data")


def test_other_data_change_the_fingerprint() -> None:
    assert training_fingerprint(BASE, "data") != training_fingerprint(BASE, "other")


def test_torch_and_processor_change_the_fingerprint() -> None:
    before = training_fingerprint(BASE, "data", torch="2.14", processor="AVX2")
    assert training_fingerprint(BASE, "data", torch="2.14", processor="AVX2") == before
    assert training_fingerprint(BASE, "data", torch="2.15", processor="AVX2") != before
    assert training_fingerprint(BASE, "data", torch="2.14", processor="AVX512") != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, in which the fingerprint is taken."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("stages/train.py", 'prepared.images("train")', 'prepared.images("train")[:8]'),
        ("src/facevae/train/resume.py", "Progress(header.rows, tensors,", "Progress(header.rows[:-1], tensors,"),
        ("src/facevae/storage/tensors.py", "tensor.contiguous()", "tensor.half()"),
        ("src/facevae/storage/tables.py", "SIGNIFICANT_DIGITS = 7", "SIGNIFICANT_DIGITS = 6"),
        ("src/facevae/model/vae.py", "0.5 * self.log_variance", "self.log_variance"),
        ("src/facevae/train/optimizers.py", "beta1: float = 0.9", "beta1: float = 0.8"),
    ],
)
def test_code_that_matters_changes_the_fingerprint(package: Path, path: str, before: str, after: str) -> None:
    original = training_fingerprint(BASE, "data")
    edit(package / path, before, after)
    assert training_fingerprint(BASE, "data") != original


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("src/facevae/errors.py", "memory ran out", "no memory is left"),
        ("src/facevae/config/checks.py", "is not divisible by", "cannot be divided by"),
        ("src/facevae/storage/tensors.py", "its content does not match its digest", "it is broken"),
        ("src/facevae/train/epoch.py", "steps of one epoch had a gradient", "steps had a gradient"),
        ("src/facevae/train/resume.py", "training starts over", "starting over"),
        ("src/facevae/model/vae.py", '"""', '"""Edited. '),
        ("src/facevae/train/step.py", "self.step = 0", "self.step = 0  # edited"),
        ("src/facevae/figures/charts.py", "DPI", "100"),
        ("src/facevae/commands/faces.py", "COLUMNS = 8", "COLUMNS = 9"),
    ],
)
def test_wording_and_other_code_keep_the_fingerprint(package: Path, path: str, before: str, after: str) -> None:
    original = training_fingerprint(BASE, "data")
    edit(package / path, before, after)
    assert training_fingerprint(BASE, "data") == original


def test_the_fingerprint_does_not_depend_on_the_folder(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = training_fingerprint(BASE, "data")
    monkeypatch.chdir(ROOT)
    assert package != ROOT
    assert training_fingerprint(BASE, "data") == copied


@pytest.mark.parametrize(
    ("path", "addition", "counts"),
    [
        ("src/facevae/model/vae.py", "# edited\n", True),
        ("src/facevae/figures/charts.py", "# edited\n", False),
        ("src/facevae/tracking/store.py", "# edited\n", False),
        ("data/prepared/train.npy", "x", True),
        ("data/prepared/more.txt", "x", True),
        ("README.md", "x", False),
    ],
)
def test_edits_of_declared_files_change_the_inputs_digest(
    copy: Path, monkeypatch: pytest.MonkeyPatch, path: str, addition: str, counts: bool
) -> None:
    monkeypatch.chdir(copy)
    before = inputs_digest("train")
    assert inputs_digest("train") == before
    with (copy / path).open("a") as file:
        file.write(addition)
    assert (inputs_digest("train") != before) is counts


@pytest.mark.parametrize(("change", "counts"), [({"train__beta": 2.0}, True), ({"figures__num_samples": 7}, False)])
def test_declared_params_change_the_inputs_digest(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], counts: bool
) -> None:
    monkeypatch.chdir(copy)
    (copy / "params.yaml").write_text(yaml.safe_dump(small_tree()))
    before = inputs_digest("train")
    (copy / "params.yaml").write_text(yaml.safe_dump(small_tree(**change)))
    assert (inputs_digest("train") != before) is counts


def test_a_change_while_a_stage_runs_is_refused() -> None:
    refuse_change("a", "a")
    with pytest.raises(UserError, match="changed while the stage ran"):
        refuse_change("a", "b")
