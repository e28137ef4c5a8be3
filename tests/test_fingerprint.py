import shutil
from pathlib import Path

import pytest
import yaml
from conftest import small_params, small_tree

from facevae import fingerprint
from facevae.errors import UserError
from facevae.fingerprint import inputs_digest, refuse_change
from facevae.params import Params

BASE = small_params()


def training_fingerprint(params: Params, data_digest: str, **platform: str) -> str:
    return fingerprint.training_fingerprint(params, data_digest, platform)


@pytest.mark.parametrize(
    "change", [{"train__beta": 2.0}, {"model__latent_dim": 4}, {"seed": 8}, {"train__num_threads": 3}]
)
def test_what_determines_the_weights_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") != training_fingerprint(BASE, "data")


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate__split": "validation"},
        {"figures__num_samples": 7},
        {"data__root": "elsewhere"},
        {"train__launcher": "torchrun"},
    ],
)
def test_what_is_shown_and_where_and_how_many_processes_train_change_nothing(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") == training_fingerprint(BASE, "data")


def test_other_data_is_another_training() -> None:
    assert training_fingerprint(BASE, "data") != training_fingerprint(BASE, "other")


def test_another_torch_or_processor_is_another_training() -> None:
    before = training_fingerprint(BASE, "data", torch="2.14", processor="AVX2")
    assert training_fingerprint(BASE, "data", torch="2.14", processor="AVX2") == before
    assert training_fingerprint(BASE, "data", torch="2.15", processor="AVX2") != before
    assert training_fingerprint(BASE, "data", torch="2.14", processor="AVX512") != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library that the fingerprint is taken of."""
    copy = tmp_path / "facevae"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize(("module", "counts"), [("model.py", True), ("figures.py", False), ("cli.py", False)])
def test_the_code_counts_where_the_weights_depend_on_it(package: Path, module: str, counts: bool) -> None:
    before = training_fingerprint(BASE, "data")
    (package / module).write_text("# other\n")
    assert (training_fingerprint(BASE, "data") != before) is counts


def test_where_the_code_lies_changes_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = training_fingerprint(BASE, "data")
    monkeypatch.undo()
    assert package != fingerprint.PACKAGE
    assert training_fingerprint(BASE, "data") == copied


@pytest.mark.parametrize(
    ("path", "addition", "counts"),
    [
        ("src/facevae/model.py", "# edited\n", True),
        ("src/facevae/charts.py", "# edited\n", False),
        ("src/facevae/tracking/store.py", "# edited\n", False),
        ("data/prepared/train.npy", "x", True),
        ("data/prepared/more.txt", "x", True),
        ("README.md", "x", False),
    ],
)
def test_an_edit_is_seen_where_dvc_declares_it_for_the_stage(
    copy: Path, monkeypatch: pytest.MonkeyPatch, path: str, addition: str, counts: bool
) -> None:
    monkeypatch.chdir(copy)
    before = inputs_digest("train")
    assert inputs_digest("train") == before
    with (copy / path).open("a") as file:
        file.write(addition)
    assert (inputs_digest("train") != before) is counts


@pytest.mark.parametrize(("change", "counts"), [({"train__beta": 2.0}, True), ({"figures__num_samples": 7}, False)])
def test_other_params_are_seen_where_the_stage_uses_them(
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
