"""The catalogue of bad input, part 6: sets of good images that a later stage would refuse, so `prepare` does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, disc_images, failure_of, run_stage, small_tree, working_in
from PIL import Image

from facevae.data.prepared import PreparedSet

DISCS = disc_images(40, 12)
LISTS = ("evaluate__attributes", "figures__attributes", "figures__latent_map_attributes")
HELD_OUT = int(np.random.default_rng(7).permutation(20)[0])  # a validation image of twenty, with the seed of the params
Write = Callable[[Path], object]


def discs(number: int, suffix: str = ".png") -> Write:
    def write(root: Path) -> None:
        for i in range(number):
            Image.fromarray(DISCS[i]).save(root / f"{i:02}{suffix}")

    return write


def labelled(values: list[int], number: int = 20) -> Write:
    """Images with the attribute Smiling, whose values repeat."""

    def write(root: Path) -> None:
        discs(number)(root)
        rows = "".join(f"{i:02}.png,{values[i % len(values)]},{i % 2}\n" for i in range(number))
        (root / "attributes.csv").write_text(f"name,Smiling,Male\n{rows}")

    return write


def official(parts: list[int]) -> Write:
    """CelebA with an official split."""

    def write(root: Path) -> None:
        folder = root / "img_align_celeba"
        folder.mkdir()
        discs(len(parts), ".jpg")(folder)
        rows = [f"{i:02}.jpg" for i in range(len(parts))]
        table = "".join(f"{name} {-1 if i % 2 else 1}\n" for i, name in enumerate(rows))
        (root / "list_attr_celeba.txt").write_text(f"{len(parts)}\nMale\n{table}")
        split = "".join(f"{name} {part}\n" for name, part in zip(rows, parts, strict=True))
        (root / "list_eval_partition.txt").write_text(split)

    return write


def twenty(image: Callable[[int], np.ndarray]) -> Write:
    def write(root: Path) -> None:
        for i in range(20):
            Image.fromarray(image(i)).save(root / f"{i:02}.{('png', 'bmp')[i % 2]}")

    return write


def bad_ones(root: Path) -> None:
    """Ten good images, and ten that cannot be decoded, which alone have the attribute Smiling."""
    labelled([0] * 10 + [1] * 10)(root)
    for i in range(10, 20):
        (root / f"{i:02}.png").write_bytes(b"")


OFFICIAL: dict[str, object] = {"data__source": "celeba", "data__split": "official"}
TENTHS: dict[str, object] = {"data__validation_fraction": 0.1, "data__test_fraction": 0.1}
ON_TEST: dict[str, object] = {"evaluate__split": "test"}
BAD: dict[str, tuple[Write, dict[str, object], str]] = {  # name: the images, changes of the params, part of the error
    "ten images": (discs(10), TENTHS, "leave 1 validation image(s), but evaluate needs two: use more images or raise"),
    "ten of twenty images": (
        discs(20),
        TENTHS | {"data__num_images": 10},
        "leave 1 validation image(s), but evaluate needs two: raise data.num_images or raise the fraction",
    ),
    "one test image": (
        discs(10),
        {"data__test_fraction": 0.1},
        "leave 1 test image(s), but evaluate.split needs two",
    ),
    "one test image, for the figures": (
        discs(10),
        {"data__test_fraction": 0.1, "evaluate__split": "validation"},
        "leave 1 test image(s), but figures.split needs two",
    ),
    "one training image": (
        discs(10),
        {"data__validation_fraction": 0.4, "data__test_fraction": 0.5},
        "leave 1 train image(s), but evaluate needs two: use more images or lower the fractions",
    ),
    "two images": (discs(2), {}, "leave no validation images"),
    "one image": (discs(1), {}, "leave 1 train image(s), but evaluate needs two"),
    "an official split without validation images": (
        official([0] * 9 + [2] * 3),
        OFFICIAL,
        "split as CelebA's authors did, leave no validation images: set data.split to random",
    ),
    "the first images of the official split": (
        official([0] * 9 + [1] * 3 + [2] * 3),
        OFFICIAL | {"data__num_images": 9},
        "leave no validation images: raise data.num_images, set it to null to take all images, or set data.split to",
    ),
    "one validation image of the official split": (
        official([0] * 9 + [1] * 3 + [2] * 3),
        OFFICIAL | {"data__num_images": 10},
        "data.num_images: the first 10 images, split as CelebA's authors did, leave 1 validation image(s)",
    ),
    "one test image of the official split": (
        official([0] * 9 + [1] * 3 + [2]),
        OFFICIAL,
        "leave 1 test image(s), but evaluate.split needs two: set data.split to random",
    ),
    "an attribute of all images": (
        labelled([1]),
        {"evaluate__attributes": ["Smiling"]},
        "evaluate.attributes: 'Smiling' belongs to all of the 12 training images, so nothing can be learnt of it",
    ),
    "an attribute of no image": (
        labelled([0]),
        {"figures__attributes": ["Male", "Smiling"]},
        "figures.attributes: 'Smiling' belongs to none of the 12 training images",
    ),
    "an attribute of a held-out image alone": (
        labelled([int(i == HELD_OUT) for i in range(20)]),
        {"evaluate__attributes": ["Smiling"]},
        "evaluate.attributes: 'Smiling' belongs to none of the 12 training images",
    ),
    "an attribute of bad images alone": (
        bad_ones,
        {"evaluate__attributes": ["Smiling"], "data__on_bad_image": "skip", "data__validation_fraction": 0.3},
        "evaluate.attributes: 'Smiling' belongs to none of the ",
    ),
    "bad images in the validation split": (
        bad_ones,
        {"data__on_bad_image": "skip", "data__validation_fraction": 0.1},
        "data: 10 images with split 'random', validation_fraction 0.1 and test_fraction 0.2 leave ",
    ),
    "identical images": (twenty(lambda _: DISCS[0]), {}, "all training images of raw have the same pixels"),
    "images of a single colour": (
        twenty(lambda i: np.full((12, 12, 3), 10 * i, np.uint8)),
        {},
        "data.root: every test image of raw has a single colour: use other images",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the stage can run, without images."""
    (tmp_path / "raw").mkdir()
    for name in ("dvc.yaml", "src", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def write_params(folder: Path, **changes: object) -> None:
    data = {"data__source": "folder", "data__root": "raw", "data__num_images": None}
    tree = small_tree(**{**data, **{key: [] for key in LISTS}, **changes})
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("name", BAD)
def test_prepare_refuses_what_a_later_stage_would(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, changes, message = BAD[name]
    write(folder / "raw")
    write_params(folder, **changes)
    with working_in(folder):
        error = failure_of("prepare", capsys)
    assert message in error
    assert "fraction" not in error or changes.get("data__split") != "official"
    assert not (folder / "data").exists() or not any((folder / "data").iterdir())


GOOD: dict[str, tuple[Write, dict[str, object]]] = {
    "two images in each split": (discs(6), {"data__validation_fraction": 0.33, "data__test_fraction": 0.33}),
    "an attribute that nobody names": (labelled([1]), {"figures__latent_map_attributes": ["Smiling"]}),
    "one test image that nobody uses": (
        discs(10),
        {"data__test_fraction": 0.1, "evaluate__split": "validation", "figures__split": "validation"},
    ),
    "the official split": (official([0, 0, 1, 1, 2, 2]), OFFICIAL | {"data__num_images": 6}),
}


@pytest.mark.parametrize("name", GOOD)
def test_prepare_accepts_what_the_later_stages_can_use(folder: Path, name: str) -> None:
    write, changes = GOOD[name]
    write(folder / "raw")
    write_params(folder, **changes)
    with working_in(folder):
        run_stage("prepare")
        assert sum(PreparedSet().manifest.num_images.values()) >= 6
