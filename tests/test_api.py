"""`import facevae` as users do: at little cost, by the pages' examples, and from an installed wheel."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, clean_environment
from PIL import Image

import facevae


def run(*command: str | Path, folder: Path, library: Path) -> str:
    """The output of a command, for which a folder of packages precedes those of the environment."""
    environment = clean_environment() | {"PYTHONPATH": str(library)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder into which the package has been installed from a wheel, without a network."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"facevae-{facevae.__version__}-py3-none-any.whl"
    target = tmp_path / "library"
    install = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", sys.executable]
    subprocess.run([*install, "--target", target, wheel], env=clean_environment(), check=True)
    return target


def test_importing_the_package_imports_no_other_library(tmp_path: Path) -> None:
    script = "import sys, facevae; print({'numpy', 'torch', 'pydantic', 'PIL'} & sys.modules.keys())"
    assert run(sys.executable, "-c", script, folder=tmp_path, library=ROOT / "src") == "set()"


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == facevae.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_examples_of_the_page_run_in_order(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    shutil.copytree(evaluated / "models", tmp_path / "models")
    images = np.load(evaluated / "data" / "prepared" / "test.npy")
    for name, pixels in zip(("face.jpg", "other.jpg"), images, strict=False):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    for name, value in names.items():
        if name in {"faces", "smiling", "steps", "reconstructions", "originals"}:
            assert isinstance(value, np.ndarray)
            assert (value.dtype, value.shape[1:]) == (np.uint8, (16, 16, 3)), name


@pytest.mark.slow
def test_installed_wheel_gives_the_same_in_an_empty_folder(library: Path, trained: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    weights, image = trained / "models" / "vae.safetensors", trained / "a.png"
    script = "\n".join(
        [
            "import sys, facevae",
            "print(facevae.__file__)",
            "model = facevae.load(sys.argv[1])",
            "print(model.sample(4, seed=1).tolist(), model.edit(sys.argv[2], add={'Smiling': 1.0}).tolist())",
        ]
    )
    output = run(sys.executable, "-c", script, weights, image, folder=empty, library=library)
    location, _, results = output.partition("\n")
    assert Path(location).is_relative_to(library)
    model = facevae.load(weights)
    assert results == f"{model.sample(4, seed=1).tolist()} {model.edit(image, add={'Smiling': 1.0}).tolist()}"
    assert run(library / "bin" / "facevae", "--version", folder=empty, library=library) == facevae.__version__
    assert list(empty.iterdir()) == []
