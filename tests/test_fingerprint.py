import shutil
from pathlib import Path

import pytest
from conftest import small_params

from facevae import fingerprint
from facevae.fingerprint import pipeline_fingerprint, training_fingerprint

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


def test_the_code_counts_where_a_result_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "facevae"
    shutil.copytree(fingerprint.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprint.code_digest()
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    assert fingerprint.code_digest() == before
    (package / "tracking.py").write_text("# other\n")
    assert fingerprint.code_digest() == before
    (package / "sources" / "mnist.py").write_text("# other\n")
    assert fingerprint.code_digest() != before
