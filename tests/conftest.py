"""What several test modules build on: a small complete set of params, small images, and the real data where it lies."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from facevae.params import Params, parse_params

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

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
        "on_bad_image": "fail",
    },
    "model": {
        "channels": [8, 16],
        "strides": [2, 2],
        "kernel_size": 4,
        "latent_dim": 3,
        "normalization": "none",
        "negative_slope": 0.01,
        "dropout": 0.0,
    },
    "train": {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.01,
        "learning_rate_decay": "none",
        "learning_rate_warmup_steps": 0,
        "likelihood": "squared_error",
        "beta": 1.0,
        "kl_warmup_epochs": 0,
        "clip_gradient_norm": None,
        "skip_gradient_norm": None,
        "max_skipped_steps": 5,
        "precision": "float32",
        "device": "cpu",
        "num_threads": 1,  # tiny tensors: a second thread costs more than it brings
    },
    "evaluate": {"split": "test", "batch_size": 5},
    "figures": {
        "split": "test",
        "num_reconstructions": 4,
        "num_samples": 6,
        "num_interpolations": 2,
        "interpolation_steps": 3,
        "attributes": ["Eyeglasses"],
        "strengths": [-1, 0, 1],
        "latent_map_attributes": ["Eyeglasses"],
    },
    "tracking": {"experiment": "tests"},
}


def small_tree(**changes: object) -> dict[str, Any]:
    """The small params as plain values; `changes` are given as section__key or key."""
    tree = yaml.safe_load(yaml.safe_dump(SMALL))
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = tree
        for part in sections:
            section = section[part]
        section[key] = value
    return dict(tree)


def small_params(**changes: object) -> Params:
    """The small params, checked."""
    return parse_params(small_tree(**changes), "params.yaml")


def disc_images(num_images: int, size: int = 8, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Discs of a random place, radius and colour on black: (num_images, size, size, channels)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre = generator.uniform(0.3 * size, 0.7 * size, (num_images, 2, 1, 1))
    radius = generator.uniform(0.2 * size, 0.4 * size, (num_images, 1, 1))
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    colour = generator.integers(100, 256, (num_images, 1, 1, channels))
    return np.where(inside[..., None], colour, 0).astype(np.uint8)


def clone(target: Path, **changes: object) -> Path:
    """The files of this checkout that Git tracks or would track, as a repository of their own, with small params."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    small = small_tree(data__image_size=16, figures__attributes=["Eyeglasses", "Smiling"], **changes)
    (target / "params.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    for command in (
        ["git", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", "clone"],
    ):
        subprocess.run(command, cwd=target, check=True)
    return target


def dvc(folder: Path, *arguments: str) -> str:
    """What DVC prints; the tests' own interpreter runs the stages."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    result = subprocess.run(
        ["dvc", *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = result.stdout.decode()
    if result.returncode:
        raise RuntimeError(output)
    return output


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes PNG or JPEG files of discs into a folder below tmp_path and returns it."""

    def write(names: list[str], folder: str = "images", size: tuple[int, int] = (20, 24)) -> Path:
        target = tmp_path / folder
        for i, name in enumerate(names):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = disc_images(1, max(size), seed=i)[0]
            Image.fromarray(pixels[: size[1], : size[0]]).save(path)
        return target

    return write


def shared_data(name: str) -> Path:
    """A folder of real images beside the checkout; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.is_dir():
        pytest.skip(f"the real images of {name} are not beside this checkout")
    return path
