import shutil
from pathlib import Path

import pytest
from conftest import small_params

from facevae import fingerprint
from facevae.errors import UserError
from facevae.fingerprint import refuse_change, training_fingerprint

BASE = small_params()


@pytest.mark.parametrize(
    "change", [{"train__beta": 2.0}, {"model__latent_dim": 4}, {"seed": 8}, {"train__num_threads": 3}]
)
def test_what_determines_the_weights_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") != training_fingerprint(BASE, "data")


@pytest.mark.parametrize(
    "change", [{"evaluate__split": "validation"}, {"figures__num_samples": 7}, {"data__root": "elsewhere"}]
)
def test_what_is_shown_and_where_things_lie_change_nothing(change: dict[str, object]) -> None:
    assert training_fingerprint(small_params(**change), "data") == training_fingerprint(BASE, "data")


def test_other_data_is_another_training() -> None:
    assert training_fingerprint(BASE, "data") != training_fingerprint(BASE, "other")


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


def test_a_change_while_a_stage_runs_is_refused() -> None:
    refuse_change("a", "a")
    with pytest.raises(UserError, match="changed while the stage ran"):
        refuse_change("a", "b")
