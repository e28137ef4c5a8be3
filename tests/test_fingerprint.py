import shutil
from pathlib import Path

import pytest
from conftest import small_params

from facevae import fingerprint
from facevae.errors import UserError
from facevae.fingerprint import pipeline_fingerprint, refuse_change, training_fingerprint

BASE = small_params()


@pytest.mark.parametrize(
    "change", [{"train__beta": 2.0}, {"model__latent_dim": 4}, {"seed": 8}, {"train__num_threads": 3}]
)
def test_what_determines_the_weights_changes_both_fingerprints(change: dict[str, object]) -> None:
    changed = small_params(**change)
    assert training_fingerprint(changed, "data") != training_fingerprint(BASE, "data")
    assert pipeline_fingerprint(changed, "data") != pipeline_fingerprint(BASE, "data")


@pytest.mark.parametrize("change", [{"evaluate__split": "validation"}, {"figures__num_samples": 7}])
def test_what_is_shown_changes_that_of_the_pipeline_alone(change: dict[str, object]) -> None:
    changed = small_params(**change)
    assert training_fingerprint(changed, "data") == training_fingerprint(BASE, "data")
    assert pipeline_fingerprint(changed, "data") != pipeline_fingerprint(BASE, "data")


@pytest.mark.parametrize("change", [{"data__root": "elsewhere"}, {"tracking__experiment": "other"}])
def test_where_things_lie_changes_nothing(change: dict[str, object]) -> None:
    assert pipeline_fingerprint(small_params(**change), "data") == pipeline_fingerprint(BASE, "data")


def test_other_data_is_another_state() -> None:
    assert training_fingerprint(BASE, "data") != training_fingerprint(BASE, "other")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library that the fingerprints are taken of."""
    copy = tmp_path / "facevae"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize(
    ("module", "training", "pipeline"),
    [
        ("model.py", True, True),
        ("sources/mnist.py", False, True),  # the digest of the data speaks for it
        ("figures.py", False, True),
        ("tracking.py", False, False),
    ],
)
def test_the_code_counts_where_a_result_depends_on_it(
    package: Path, module: str, training: bool, pipeline: bool
) -> None:
    before = training_fingerprint(BASE, "data"), pipeline_fingerprint(BASE, "data")
    (package / module).write_text("# other\n")
    assert (training_fingerprint(BASE, "data") != before[0]) is training
    assert (pipeline_fingerprint(BASE, "data") != before[1]) is pipeline


def test_where_the_code_lies_changes_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = pipeline_fingerprint(BASE, "data")
    monkeypatch.undo()
    assert package != fingerprint.PACKAGE
    assert pipeline_fingerprint(BASE, "data") == copied


def test_a_change_while_a_stage_runs_is_refused() -> None:
    refuse_change("a", "a")
    with pytest.raises(UserError, match="changed while the stage ran"):
        refuse_change("a", "b")
