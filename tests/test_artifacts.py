"""The trained model as an artifact of DVC's registry, found by its GTO tags from another repository."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import clean_environment, commit_all, dvc, init_repository


def run(folder: Path, *command: str) -> str:
    environment = clean_environment()
    return subprocess.check_output([*command], cwd=folder, env=environment, text=True, stderr=subprocess.STDOUT)


@pytest.fixture
def registry(copy: Path, tmp_path: Path) -> Path:
    """A clone without a cache of the project, whose weights lie in a remote folder and have a version and a stage."""
    dvc(copy, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    dvc(copy, "push")
    commit_all(copy, "Remote")
    run(copy, "gto", "register", "vae", "--version", "v1.0.0")
    run(copy, "gto", "assign", "vae", "--version", "v1.0.0", "--stage", "prod")
    run(tmp_path, "git", "clone", "--quiet", str(copy), str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another repository, which uses DVC."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "README.md").write_text("Uses the model")
    init_repository(folder)
    dvc(folder, "init", "--quiet")
    return folder


@pytest.mark.parametrize("version", [("--rev", "v1.0.0"), ("--stage", "prod")])
def test_another_repository_gets_the_weights_by_version_and_by_stage(
    registry: Path, other: Path, copy: Path, version: tuple[str, str]
) -> None:
    dvc(other, "artifacts", "get", str(registry), "vae", *version, "--out", "vae.safetensors")
    assert (other / "vae.safetensors").read_bytes() == (copy / "models" / "vae.safetensors").read_bytes()


def test_priors_and_directions_come_with_the_tag_of_the_weights(registry: Path, other: Path, copy: Path) -> None:
    for name in ("priors.safetensors", "directions.safetensors"):
        dvc(other, "get", str(registry), f"models/{name}", "--rev", "vae@v1.0.0")
        assert (other / name).read_bytes() == (copy / "models" / name).read_bytes()


def test_dvcs_api_shows_commit_and_path(registry: Path, other: Path) -> None:
    script = f"import dvc.api; print(dvc.api.artifacts_show('vae', version='v1.0.0', repo={str(registry)!r}))"
    shown = run(other, sys.executable, "-c", script)
    commit = run(registry, "git", "rev-parse", "vae@v1.0.0^{commit}").strip()
    assert shown.strip() == str({"rev": commit, "path": "models/vae.safetensors"})
