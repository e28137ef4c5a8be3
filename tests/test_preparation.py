import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import small_params
from PIL import Image
from readers import PIXELS, read_disc, read_disc_or_fail, read_until_a_crash, read_until_a_kill

from facevae.config.schema import DataParams
from facevae.crop import Crop
from facevae.data import preparation
from facevae.data.preparation import prepare
from facevae.data.prepared import SPLITS, ArrayWriter, PreparedSet
from facevae.data.sources.folder import open_folder
from facevae.data.sources.source import Source
from facevae.data.splits import assign_splits
from facevae.errors import UserError


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks of the few small images of these tests."""
    monkeypatch.setattr(preparation, "CHUNK_BYTES", 30 * PIXELS[0].nbytes)


def disc_source(read: Callable[[int], Image.Image] = read_disc, partition: list[str] | None = None) -> Source:
    names = [f"disc-{i}" for i in range(len(PIXELS))]
    bright = pd.DataFrame({"Bright": (PIXELS.max((1, 2, 3)) > 180).astype("uint8")}, index=names)
    return Source(names, bright, read, partition)


def data_params(**changes: object) -> DataParams:
    return small_params(data__source="folder", **{f"data__{key}": value for key, value in changes.items()}).data


def test_each_image_is_prepared_once_with_its_attributes(tmp_path: Path) -> None:
    manifest = prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    prepared = PreparedSet(tmp_path / "prepared")
    assert manifest.num_images == {"train": 120, "validation": 40, "test": 40}
    seen = []
    for split in SPLITS:
        attributes = prepared.attributes(split)
        for name, image, bright in zip(attributes.index, prepared.images(split), attributes["Bright"], strict=True):
            position = int(name.removeprefix("disc-"))
            assert np.array_equal(image, PIXELS[position])
            assert bright == (PIXELS[position].max() > 180)
            seen.append(position)
    assert sorted(seen) == list(range(200))


def test_the_random_split_depends_only_on_the_seed(tmp_path: Path) -> None:
    first = prepare(disc_source(), data_params(), seed=1, target=tmp_path / "first")
    again = prepare(disc_source(), data_params(), seed=1, target=tmp_path / "again")
    other = prepare(disc_source(), data_params(), seed=2, target=tmp_path / "other")
    assert first == again
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert first.digest != other.digest


def test_the_official_split_is_followed(tmp_path: Path) -> None:
    partition = ["test"] * 20 + ["train"] * 150 + ["validation"] * 30
    params = small_params(data__source="celeba", data__split="official").data
    prepare(disc_source(partition=partition), params, seed=0, target=tmp_path / "prepared")
    assert np.array_equal(PreparedSet(tmp_path / "prepared").images("test"), PIXELS[:20])


def test_images_become_grey_and_are_resized(tmp_path: Path) -> None:
    params = data_params(image_size=16, channels=1, crop=4)
    prepare(disc_source(), params, seed=0, target=tmp_path / "prepared")
    assert PreparedSet(tmp_path / "prepared").images("train").shape == (120, 16, 16, 1)


def test_the_manifest_knows_the_raw_size_of_a_crop(write_images: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images([f"{i}.png" for i in range(10)], size=(20, 24))
    Image.new("RGB", (9, 9)).save(root / "0.png")  # smaller than the crop
    Image.new("RGB", (400, 300)).save(root / "1.png")
    for crop, expected in ((10, Crop(side=10, raw_side=20)), (None, None)):
        params = data_params(root=str(root), crop=crop, on_bad_image="skip")
        manifest = prepare(open_folder(root, None), params, seed=0, target=tmp_path / "prepared")
        assert PreparedSet(tmp_path / "prepared").manifest.crop == manifest.crop == expected


def test_bad_images_fail_the_stage_and_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(disc_source(read_disc_or_fail), data_params(), seed=0, target=tmp_path / "prepared")
    assert "4 of 200 images under data/raw cannot be used" in str(error.value)
    for position in (3, 53, 103, 153):
        assert f"disc-{position}: it is number {position}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_skipped_images_are_listed_in_the_manifest(tmp_path: Path) -> None:
    params = data_params(on_bad_image="skip")
    manifest = prepare(disc_source(read_disc_or_fail), params, seed=1, target=tmp_path / "prepared")
    assert [bad.name for bad in manifest.bad_images] == ["disc-3", "disc-53", "disc-103", "disc-153"]
    prepared = PreparedSet(tmp_path / "prepared")
    assert sum(manifest.num_images.values()) == 196
    whole = assign_splits(disc_source(), params, seed=1)
    for split in SPLITS:
        names = prepared.attributes(split).index
        assert [whole[int(name.removeprefix("disc-"))] for name in names] == [split] * len(names)
        expected = np.stack([PIXELS[int(name.removeprefix("disc-"))] for name in names])
        assert np.array_equal(prepared.images(split), expected)


def test_a_truncated_file_is_reported_by_name(write_images: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images([f"{i}.jpg" for i in range(10)])
    (root / "4.jpg").write_bytes((root / "4.jpg").read_bytes()[:-200])
    params = data_params(root=str(root))
    with pytest.raises(UserError, match=r"1 of 10 images .*\n  4.jpg: it cannot be decoded"):
        prepare(open_folder(root, None), params, seed=0, target=tmp_path / "prepared")


def test_a_truncated_file_is_skipped_on_request(write_images: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images([f"{i}.jpg" for i in range(10)])
    (root / "4.jpg").write_bytes((root / "4.jpg").read_bytes()[:-200])
    params = data_params(root=str(root), on_bad_image="skip")
    manifest = prepare(open_folder(root, None), params, seed=0, target=tmp_path / "prepared")
    assert [bad.name for bad in manifest.bad_images] == ["4.jpg"]
    assert sum(manifest.num_images.values()) == 9


def test_a_crash_leaves_the_former_set(tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    prepare(disc_source(), data_params(), seed=1, target=target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(RuntimeError, match="a bug"):
        prepare(disc_source(read_until_a_crash), data_params(), seed=2, target=target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_decoding_process_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a process that decodes images was killed, most likely because memory ran out"):
        prepare(disc_source(read_until_a_kill), data_params(), seed=1, target=tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status", "output"), [("INT", 130, "interrupted\n"), ("KILL", -signal.SIGKILL, "")])
def test_a_stopped_prepare_leaves_no_process(tmp_path: Path, number: str, status: int, output: str) -> None:
    (tmp_path / "slow_reader.py").write_text("""
import os, time
def read(position):
    print(os.getpid(), flush=True)
    time.sleep(600)
""")
    script = f"""
import signal, sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
import pandas as pd
from facevae.errors import reported_errors
from facevae.config.schema import DataParams
from facevae.data.preparation import prepare
from facevae.data.sources.source import Source
from slow_reader import read
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
names = [str(i) for i in range(100)]
params = DataParams.model_validate_json({data_params().model_dump_json()!r})
with reported_errors():
    prepare(Source(names, pd.DataFrame(index=names), read), params, 0, Path({str(tmp_path / "prepared")!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # once one process is reading, all have started
    readers = psutil.Process(process.pid).children(recursive=True)
    assert len(readers) >= (os.cpu_count() or 1)
    if number == "INT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    else:
        process.kill()
    _, alive = psutil.wait_procs(readers, timeout=30)
    if alive:  # they would keep the pipes open
        os.killpg(process.pid, signal.SIGKILL)
    assert alive == []
    said = process.communicate(timeout=30)[1]
    if number == "KILL":  # Python removes the semaphores of the killed process, and says so
        said = "".join(line for line in said.splitlines(keepends=True) if "resource_tracker" not in line)
    assert (said, process.returncode) == (output, status)


def test_the_folder_is_renamed_after_all_files_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def record_rename(path: Path, target: Path) -> Path:
        synced.append(f"{path.name} to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    moment = synced.index("prepared.partial to prepared")
    names = {"train.npy", "validation.npy", "test.npy", ".attributes.csv.partial", ".manifest.json.partial"}
    assert names <= set(synced[:moment])
    assert synced[moment - 1 :] == ["prepared.partial", "prepared.partial to prepared", tmp_path.name]


def test_a_partial_folder_is_not_a_prepared_set(tmp_path: Path) -> None:
    partial = tmp_path / "prepared.partial"
    partial.mkdir()
    (partial / "train.npy").write_bytes(b"half")
    with pytest.raises(UserError, match="manifest.json is missing"):
        PreparedSet(partial)
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    assert not partial.exists()


@pytest.mark.parametrize(
    ("changes", "split"), [({"validation_fraction": 0.001}, "validation"), ({"test_fraction": 0.002}, "test")]
)
def test_a_split_that_would_be_empty_is_refused(changes: dict[str, float], split: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"leave no {split} images"):
        prepare(disc_source(), data_params(**changes), seed=0, target=tmp_path / "prepared")


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"source": "folder"}')


def cut_array(folder: Path) -> None:
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes()[:-1])


def replace_array(folder: Path) -> None:
    np.save(folder / "train.npy", PIXELS[:5])


def empty_array(folder: Path) -> None:
    (folder / "train.npy").write_bytes(b"")


def break_header(folder: Path) -> None:
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes().replace(b")", b"(", 1))


def rename_column(folder: Path) -> None:
    path = folder / "attributes.csv"
    path.write_text(path.read_text().replace("split", "part"))


def drop_names(folder: Path) -> None:
    path = folder / "attributes.csv"
    path.write_text(path.read_text().replace("name", "image"))


def drop_row(folder: Path) -> None:
    lines = (folder / "attributes.csv").read_text().splitlines()
    (folder / "attributes.csv").write_text("\n".join(lines[:-1]))


def read_everything(folder: Path) -> None:
    prepared = PreparedSet(folder)
    prepared.images("train")
    prepared.attributes("train")


@pytest.mark.parametrize(
    "damage",
    [damage_manifest, cut_array, replace_array, empty_array, break_header, drop_row, rename_column, drop_names],
)
def test_a_damaged_prepared_set_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    damage(tmp_path / "prepared")
    with pytest.raises(UserError, match="run `dvc repro --force prepare`"):
        read_everything(tmp_path / "prepared")


def test_missing_attributes_are_noticed(tmp_path: Path) -> None:
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    (tmp_path / "prepared" / "attributes.csv").unlink()
    with pytest.raises(UserError, match="attributes.csv cannot be read"):
        PreparedSet(tmp_path / "prepared").verified()


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "attributes.csv"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    assert PreparedSet(tmp_path / "prepared").verified().images("train").any()
    path = tmp_path / "prepared" / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(UserError, match="prepared is damaged"):
        PreparedSet(tmp_path / "prepared").verified()


def test_a_growing_array_is_an_ordinary_npy_file(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "a.npy", (8, 8, 3)) as writer:
        for start in range(0, 200, 30):
            writer.append(PIXELS[start : start + 30])
    assert np.array_equal(np.load(tmp_path / "a.npy"), PIXELS)
    np.save(tmp_path / "b.npy", PIXELS)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_the_manifest_holds_no_path_and_no_time(tmp_path: Path) -> None:
    prepare(disc_source(), data_params(), seed=1, target=tmp_path / "prepared")
    manifest = json.loads((tmp_path / "prepared" / "manifest.json").read_text())
    told = {"source", "image_size", "channels", "crop", "split", "num_images", "bad_images", "left_out"}
    told |= {"duplicates", "digest"}
    assert set(manifest) == told
