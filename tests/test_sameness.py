"""Equal images in different splits, counted one by one and compared with what the manifest says."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import disc_images, small_params
from numpy.typing import NDArray
from PIL import Image

from facevae.config.schema import DataParams
from facevae.data import preparation
from facevae.data.preparation import prepare
from facevae.data.prepared import SPLITS, Manifest, PreparedSet
from facevae.data.sources.dispatch import open_source

Split = NDArray[np.uint8]


def data_params(root: Path, **changes: object) -> DataParams:
    data = {"source": "folder", "root": str(root), "num_images": None, **changes}
    return small_params(**{f"data__{key}": value for key, value in data.items()}).data


def write_copies(root: Path, number: int, copies: int) -> Path:
    """Images in several copies: files of other formats, names and folders with the same pixels."""
    for i, disc in enumerate(disc_images(number, 8)):
        for copy in range(copies):
            path = root / str(copy) / f"{(7 * i + 3 * copy) % number}-{i}.{('png', 'bmp', 'tiff')[copy % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(disc).save(path)
    return root


def prepared_from(root: Path, target: Path, seed: int, **changes: object) -> tuple[Manifest, dict[str, Split]]:
    params = data_params(root, **changes)
    manifest = prepare(open_source(params, seed), params, seed, target)
    return manifest, {split: PreparedSet(target).images(split) for split in SPLITS}


def number_equal(images: Split, others: list[Split]) -> int:
    return sum(any((image == other).all() for split in others for other in split) for image in images)


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_across_splits_are_counted(
    tmp_path: Path, copies: int, seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "CHUNK_BYTES", 7 * 8 * 8 * 3)
    root = write_copies(tmp_path / "raw", 24, copies)
    manifest, images = prepared_from(root, tmp_path / "prepared", seed)
    expected = {
        "validation": number_equal(images["validation"], [images["train"]]),
        "test": number_equal(images["test"], [images["train"], images["validation"]]),
    }
    assert manifest.duplicates == {split: number for split, number in expected.items() if number}
    assert (sum(expected.values()) > 0) == (copies > 1)
    for split, number in manifest.duplicates.items():
        assert f"{number} {split} image(s) equal a training" in caplog.text
    assert ("equal" in caplog.text) == (copies > 1)


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_are_kept_together_on_request(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    root = write_copies(tmp_path / "raw", 24, 2)
    rows = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    values = {name: Path(name).stem.partition("-")[2] for name in rows}  # the number of the picture
    (root / "attributes.csv").write_text(
        "name,Odd\n" + "".join(f"{name},{int(value) % 2}\n" for name, value in values.items())
    )
    caplog.set_level(logging.WARNING)
    manifest, images = prepared_from(root, tmp_path / "prepared", seed, keep_duplicates_together=True)
    assert manifest.duplicates == {}
    assert caplog.text == ""
    assert sum(manifest.num_images.values()) == 48
    table = pd.concat([PreparedSet(tmp_path / "prepared").attributes(split).assign(split=split) for split in SPLITS])
    assert sorted(table.index) == rows
    assert len(table.assign(picture=table.index.map(values))[["picture", "split"]].drop_duplicates()) == 24
    assert table["Odd"].to_dict() == {name: int(value) % 2 for name, value in values.items()}
    for split in SPLITS:
        discs = disc_images(24, 8)
        expected = [discs[int(values[name])] for name in PreparedSet(tmp_path / "prepared").attributes(split).index]
        assert np.array_equal(images[split], np.stack(expected))


def test_keeping_duplicates_together_changes_nothing_without_duplicates(tmp_path: Path) -> None:
    root = write_copies(tmp_path / "raw", 30, 1)
    apart, _ = prepared_from(root, tmp_path / "apart", 0)
    together, _ = prepared_from(root, tmp_path / "together", 0, keep_duplicates_together=True)
    assert apart == together
