import gzip
import pickle
import runpy
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, shared_data, small_params, small_tree

from facevae.data.prepared import PreparedSet
from facevae.data.sources import mnist
from facevae.data.sources.avatars import open_avatars
from facevae.data.sources.celeba import open_celeba
from facevae.data.sources.dispatch import open_source
from facevae.data.sources.folder import open_folder
from facevae.data.sources.mnist import open_mnist
from facevae.errors import UserError

NAMES = ["000001.jpg", "000002.jpg", "000003.jpg"]
ATTRIBUTES = "3\nMale Smiling\n000001.jpg  1 -1\n000002.jpg -1 -1\n000003.jpg -1  1\n"
WriteImages = Callable[..., Path]


@pytest.fixture
def celeba(write_images: WriteImages) -> Path:
    root = write_images(NAMES, folder="celeba/img_align_celeba").parent
    (root / "list_attr_celeba.txt").write_text(ATTRIBUTES)
    return root


# avatars


def test_avatar_attributes_are_neither_rare_nor_common() -> None:
    frequencies = open_avatars(2000, 64, seed=3).attributes.mean()
    assert len(frequencies) >= 13
    assert frequencies.between(0.10, 0.60).all(), frequencies


def test_an_avatar_does_not_depend_on_the_number_of_avatars() -> None:
    few, many = open_avatars(5, 32, seed=1), open_avatars(50, 32, seed=1)
    pd.testing.assert_frame_equal(few.attributes, many.attributes[:5])
    assert few.read(4).tobytes() == many.read(4).tobytes()
    assert few.read(4).tobytes() == pickle.loads(pickle.dumps(many.read))(4).tobytes()
    assert few.read(4).tobytes() != open_avatars(5, 32, seed=2).read(4).tobytes()


@pytest.mark.parametrize("attribute", ["Eyeglasses", "Smiling", "Wearing_Hat", "Mustache", "Bald"])
def test_an_avatar_attribute_shows_in_the_pixels(attribute: str) -> None:
    source = open_avatars(120, 32, seed=0)
    has = source.attributes[attribute].to_numpy(dtype=bool)
    pixels = np.stack([np.asarray(source.read(i), dtype=float) for i in range(120)])
    difference = np.abs(pixels[has].mean(0) - pixels[~has].mean(0)).max()
    shuffled = np.random.default_rng(0).permutation(has)
    chance = np.abs(pixels[shuffled].mean(0) - pixels[~shuffled].mean(0)).max()
    assert difference > 1.25 * chance


@pytest.mark.parametrize("size", [64, 128])
def test_no_head_is_cut_off(size: int) -> None:
    """Above the shoulders the outermost pixels show only the background."""
    source = open_avatars(100, size, seed=0)
    for i in range(100):
        pixels = np.asarray(source.read(i), dtype=int)
        assert pixels.shape == (size, size, 3)
        edge = np.concatenate([pixels[0], pixels[: size // 2, 0], pixels[: size // 2, -1]])
        assert np.abs(edge - pixels[0, 0]).max() <= 40, source.attributes.iloc[i]


# CelebA


def test_celeba_reads_folder_and_text_tables(celeba: Path) -> None:
    source = open_celeba(celeba, None, official=False)
    assert list(source.names) == NAMES
    assert source.attributes.to_dict("list") == {"Male": [1, 0, 0], "Smiling": [0, 0, 1]}
    assert source.read(1).size == (20, 24)
    assert source.partition is None


def test_celeba_takes_images_from_the_front(celeba: Path) -> None:
    assert list(open_celeba(celeba, 2, official=False).names) == NAMES[:2]


def test_celeba_reads_kaggles_doubled_folder_and_csv(celeba: Path) -> None:
    expected = open_celeba(celeba, None, official=False).attributes
    inner = celeba / "img_align_celeba"
    inner.rename(celeba / "inner")
    inner.mkdir()
    (celeba / "inner").rename(inner / "img_align_celeba")
    (celeba / "list_attr_celeba.txt").unlink()
    rows = ["000001.jpg,1,-1", "000002.jpg,-1,-1", "000003.jpg,-1,1"]
    text = "\r\n".join(["\ufeffimage_id,Male,Smiling", *rows])  # as Windows writes it
    (celeba / "list_attr_celeba.csv").write_bytes(text.encode())
    (celeba / "list_eval_partition.csv").write_text("image_id,partition\n000001.jpg,0\n000002.jpg,1\n000003.jpg,2\n")
    source = open_celeba(celeba, None, official=True)
    pd.testing.assert_frame_equal(source.attributes, expected, check_names=False)
    assert source.partition == ["train", "validation", "test"]
    assert source.read(2).size == (20, 24)


def test_celeba_reads_the_zip_without_unpacking(celeba: Path) -> None:
    expected = open_celeba(celeba, None, official=False)
    pixels = [expected.read(i).tobytes() for i in range(3)]
    with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
        for name in NAMES:
            archive.write(celeba / "img_align_celeba" / name, f"img_align_celeba/{name}")
        archive.writestr("img_align_celeba/readme.txt", "")
    shutil.rmtree(celeba / "img_align_celeba")
    source = open_celeba(celeba, None, official=False)
    assert list(source.names) == NAMES
    assert [source.read(i).tobytes() for i in range(3)] == pixels


def test_celeba_reads_the_text_partition(celeba: Path) -> None:
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n000003.jpg 1\n")
    assert open_celeba(celeba, None, official=True).partition == ["train", "test", "validation"]


def without_images(root: Path) -> None:
    shutil.rmtree(root / "img_align_celeba")


def without_table(root: Path) -> None:
    (root / "list_attr_celeba.txt").unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without_images, "img_align_celeba.zip. Download CelebA"),
        (without_table, "holds neither list_attr_celeba.txt nor"),
    ],
)
def test_missing_celeba_files_are_reported(celeba: Path, break_it: Callable[[Path], None], message: str) -> None:
    break_it(celeba)
    with pytest.raises(UserError) as error:
        open_celeba(celeba, None, official=False)
    assert message in str(error.value)


def test_real_celeba_is_read() -> None:
    source = open_celeba(shared_data("celeba-8k"), None, official=False)
    assert (len(source.names), source.attributes.shape) == (8000, (8000, 40))
    assert source.read(7999).size == (89, 109)
    first = source.attributes.iloc[0]
    assert (first["Smiling"], first["Male"], first["Young"]) == (1, 0, 1)


# folder


def test_a_folder_is_searched_recursively(write_images: WriteImages) -> None:
    root = write_images(["b.png", "a/z.jpg", "with space é.png", ".hidden/c.png"])
    (root / "notes.txt").write_text("no image")
    source = open_folder(root, None)
    assert list(source.names) == ["a/z.jpg", "b.png", "with space é.png"]
    assert source.attributes.shape == (3, 0)
    assert source.read(2).size == (20, 24)


def test_a_folder_may_have_attributes(write_images: WriteImages) -> None:
    root = write_images(["a.png", "b.png"])
    (root / "attributes.csv").write_text("name,Smiling\nb.png,1\na.png,0\n")
    assert open_folder(root, None).attributes["Smiling"].to_list() == [0, 1]
    (root / "attributes.csv").write_text("name,Smiling\nb.png,1\n")
    with pytest.raises(UserError, match="has no row for 1 of 2 images: a.png"):
        open_folder(root, None)
    (root / "attributes.csv").write_text("name,split\nb.png,1\na.png,0\n")
    with pytest.raises(UserError, match="a column is named 'split'"):
        open_folder(root, None)


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_folder(tmp_path / "missing", None)
    with pytest.raises(UserError, match="holds no image"):
        open_folder(tmp_path, None)


def test_open_source_follows_the_params(write_images: WriteImages) -> None:
    root = write_images(["a.png"])
    params = small_params(data__source="folder", data__root=str(root), data__num_images=1)
    assert list(open_source(params.data, seed=0).names) == ["a.png"]
    params = small_params(data__source="folder", data__root=str(root), data__num_images=2)
    with pytest.raises(UserError, match="data.num_images: 2, but .* holds only 1"):
        open_source(params.data, seed=0)


# MNIST


def write_mnist(root: Path, part: str, digits: list[int], *, compress: bool) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    images = np.stack([np.full((28, 28), 10 * digit, np.uint8) for digit in digits])
    images[:, 14, 14] = 255  # because a set of single colours is refused
    contents = {
        "images-idx3": struct.pack(">4B3I", 0, 0, 8, 3, len(digits), 28, 28) + images.tobytes(),
        "labels-idx1": struct.pack(">4BI", 0, 0, 8, 1, len(digits)) + bytes(digits),
    }
    for kind, content in contents.items():
        path = raw / f"{part}-{kind}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content) if compress else content)


def test_mnist_joins_its_training_and_test_parts(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3, 1], compress=False)
    write_mnist(tmp_path, "t10k", [7], compress=True)
    source = open_mnist(tmp_path, None)
    assert source.attributes.to_numpy().argmax(axis=1).tolist() == [3, 1, 7]
    assert source.attributes.columns.to_list() == [f"Digit_{digit}" for digit in range(10)]
    assert [source.read(i).getpixel((0, 0)) for i in range(3)] == [30, 10, 70]
    assert len(open_mnist(tmp_path, 2).names) == 2


def test_missing_mnist_names_the_command_that_downloads_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MNIST/raw has no MNIST files: `dvc repro prepare` downloads them"):
        open_mnist(tmp_path, None)


def test_a_single_mnist_part_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_mnist(tmp_path, "t10k", [7, 8], compress=True)
    assert len(open_mnist(tmp_path, None).names) == 2
    assert "only the t10k part" in caplog.text


def test_the_stage_uses_a_fresh_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, object] = {"data__source": "mnist", "data__channels": 1, "data__num_images": None}
    lists = ("evaluate__attributes", "figures__attributes", "figures__latent_map_attributes")
    tree = small_tree(**changes, **{name: ["Digit_7"] for name in lists})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (tmp_path / "data" / "raw").mkdir(parents=True)
    for name in ("dvc.yaml", "src", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)

    def download(root: Path) -> None:
        for part in ("train", "t10k"):
            write_mnist(root, part, list(range(10)), compress=True)

    monkeypatch.setattr(mnist, "_download", download)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("stages/prepare.py", run_name="__main__")
    assert PreparedSet().manifest.num_images == {"train": 12, "validation": 4, "test": 4}


def test_real_mnist_is_read() -> None:
    source = open_mnist(shared_data("mnist-10k"), None)
    assert len(source.names) == 10_000
    assert source.attributes.iloc[0].idxmax() == "Digit_7"
