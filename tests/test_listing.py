"""What counts as an image, and that whatever else lies beside the images is counted."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, disc_images, run_stage, small_params, small_tree, working_in
from PIL import Image

from facevae.config.schema import DataParams
from facevae.data.preparation import prepare
from facevae.data.sources.dispatch import open_source
from facevae.errors import UserError

HIDDEN = "hidden, or in a hidden folder"
SYSTEM = "made by a system, such as Thumbs.db or in __MACOSX or @eaDir"
LINK = "a link to a folder"
UNREAD = "an image in a format that is not read, such as HEIC"
NO_IMAGE = "no image"
ELSEWHERE = "not in the folder of the images"
KINDS = {"JPEG": "RGB", "PNG": "RGB", "GIF": "P", "BMP": "RGB", "WEBP": "RGB", "AVIF": "RGB", "TIFF": "RGB", "PPM": "L"}


def stored(kind: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(disc_images(1, 20, seed=seed)[0]).convert(KINDS[kind]).save(buffer, kind)
    return buffer.getvalue()


def data_params(root: Path, source: str = "folder") -> DataParams:
    return small_params(data__source=source, data__root=str(root), data__num_images=None).data


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def raw(write_images: Callable[..., Path]) -> Path:
    """A folder of ten images."""
    return write_images([f"{i}.png" for i in range(10)], folder="raw")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["{}.jfif", "{}.avif", "{}", "{}.download", "{}.2024-01-01 at 10.30", "{}.HEIC", "{}."]
)
def test_an_image_is_used_whatever_its_suffix(raw: Path, kind: str, name: str) -> None:
    write(raw, {name.format("extra"): stored(kind)})
    source = open_source(data_params(raw), 0)
    assert len(source.names) == 11
    assert source.left_out == {}
    assert source.read(source.names.index(name.format("extra"))).size == (20, 20)


JUNK = {  # files beside the images, and the reason for which they are counted
    "an AppleDouble file": ("._0.png", HIDDEN),
    "an AppleDouble file in a subfolder": ("a/._0.jpg", HIDDEN),
    "macOS's folder settings": (".DS_Store", HIDDEN),
    "a hidden folder": (".cache/0.png", HIDDEN),
    "a folder of a macOS zip": ("__MACOSX/0.png", SYSTEM),
    "a folder that DVC ignores": ("__pycache__/0.png", SYSTEM),
    "Windows's thumbnails": ("Thumbs.db", SYSTEM),
    "thumbnails in lower case": ("thumbs.db", SYSTEM),
    "Windows's folder settings": ("a/desktop.ini", SYSTEM),
    "Synology's thumbnails": ("@eaDir/0.png/SYNOFILE_THUMB_M.png", SYSTEM),
    "Synology's bin": ("#recycle/0.png", SYSTEM),
    "Windows's bin": ("$RECYCLE.BIN/0.png", SYSTEM),
    "HEIC": ("photo.HEIC", UNREAD),
    "a raw photograph": ("photo.nef", UNREAD),
    "SVG": ("drawing.svg", UNREAD),
    "notes": ("notes.txt", NO_IMAGE),
    "a table": ("labels.json", NO_IMAGE),
    "no suffix": ("LICENSE", NO_IMAGE),
    "an empty file": ("empty", NO_IMAGE),
    "a second table": ("a/attributes.csv", NO_IMAGE),
}


@pytest.mark.parametrize("case", JUNK)
def test_what_is_left_out_is_counted_by_reason(raw: Path, tmp_path: Path, case: str) -> None:
    name, reason = JUNK[case]
    write(raw, {name: stored("PNG") if reason in (HIDDEN, SYSTEM) else b"" if case == "an empty file" else b"words"})
    params = data_params(raw)
    manifest = prepare(open_source(params, 0), params, 0, tmp_path / "prepared")
    assert sum(manifest.num_images.values()) == 10
    assert manifest.left_out == {reason: 1}
    assert f"other files left out: 1 ({reason})" in manifest.summary()


def test_all_files_are_used_or_counted(raw: Path, tmp_path: Path) -> None:
    write(raw, {name: b"words" for name, _ in JUNK.values()} | {"attributes.csv": b"name,Smiling\n"})
    with (raw / "attributes.csv").open("a") as table:
        table.writelines(f"{i}.png,{i % 2}\n" for i in range(10))
    os.mkfifo(raw / "pipe")
    (tmp_path / "elsewhere").mkdir()
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (raw / "linked.png").symlink_to(tmp_path / "elsewhere")
    (raw / "dangling").symlink_to("nothing")
    source = open_source(data_params(raw), 0)
    num_files = sum(1 for path in raw.rglob("*") if path.is_symlink() or not path.is_dir())
    assert len(source.names) == 10
    assert source.left_out[LINK] == 2
    assert len(source.names) + sum(source.left_out.values()) + len(["attributes.csv"]) == num_files


def test_a_link_to_an_image_is_used(raw: Path, tmp_path: Path) -> None:
    write(tmp_path, {"cache/f0": stored("JPEG")})
    (raw / "a.jpg").symlink_to(tmp_path / "cache" / "f0")
    (raw / "b").symlink_to(tmp_path / "cache" / "f0")
    assert {"a.jpg", "b"} < set(open_source(data_params(raw), 0).names)


@pytest.mark.parametrize("source", ["folder", "celeba"])
def test_a_folder_that_cannot_be_read_is_refused(raw: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = raw if source == "folder" else raw / "img_align_celeba"
    write(folder, {"private/a.jpg": stored("JPEG"), "000001.jpg": stored("JPEG")})
    (raw / "list_attr_celeba.txt").write_text("1\nMale\n000001.jpg 1\n")
    scandir = os.scandir

    def refuse(path: str) -> object:  # the superuser, who may run the tests, may read everything
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="private cannot be read .Permission denied.: give this user permission"):
        open_source(data_params(raw, source), 0)


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, {"photo.heic": b"x", "photo.2.heic": b"x", "a.txt": b"x"})
    with pytest.raises(UserError, match=r"holds no image .*, but 2 \(an image in a format that is not read"):
        open_source(data_params(tmp_path), 0)


def test_the_stage_says_at_its_end_what_is_left_out(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(raw, {".DS_Store": b"", "b.txt": b"words", "c.txt": b"words", "bad.png": b""})
    changes: dict[str, object] = {"data__source": "folder", "data__root": "raw", "data__num_images": None}
    changes |= {"data__on_bad_image": "skip", "data__test_fraction": 0.3}
    lists = ("evaluate__attributes", "figures__attributes", "figures__latent_map_attributes")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small_tree(**changes, **{key: [] for key in lists})))
    for name in ("dvc.yaml", "src", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    with working_in(tmp_path):
        run_stage("prepare")
    assert capsys.readouterr().out.endswith(
        "train, 2 validation, 2 test images; 1 bad image(s) left out; other files left out: "
        f"1 ({HIDDEN}), 2 ({NO_IMAGE})\n"
    )


# CelebA

NAMES = [f"00000{i}.jpg" for i in range(1, 6)]
CELEBA_JUNK = {
    "img_align_celeba/._000001.jpg": HIDDEN,
    "img_align_celeba/.DS_Store": HIDDEN,
    "img_align_celeba/Thumbs.db": SYSTEM,
    "img_align_celeba/@eaDir/000001.jpg/SYNOFILE_THUMB_M.jpg": SYSTEM,
    "img_align_celeba/__MACOSX/._000001.jpg": SYSTEM,
}


def celeba(root: Path) -> dict[str, bytes]:
    """CelebA's files with five images; the table is written."""
    root.mkdir(exist_ok=True)
    (root / "list_attr_celeba.txt").write_text("5\nMale\n" + "".join(f"{name} 1\n" for name in NAMES))
    return {f"img_align_celeba/{name}": stored("JPEG", i) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", CELEBA_JUNK)
def test_junk_in_celebas_folder_is_counted(tmp_path: Path, name: str) -> None:
    write(tmp_path, celeba(tmp_path) | {name: b"words"})
    source = open_source(data_params(tmp_path, "celeba"), 0)
    assert list(source.names) == NAMES
    assert source.left_out == {CELEBA_JUNK[name]: 1}


@pytest.mark.parametrize(
    "name", [*CELEBA_JUNK, "__MACOSX/img_align_celeba/._000001.jpg", "__MACOSX/._img_align_celeba"]
)
def test_junk_in_celebas_zip_is_counted(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        archive.mkdir("img_align_celeba")
        for member, content in (celeba(tmp_path) | {name: b"words", "img_align_celeba/readme.txt": b""}).items():
            archive.writestr(member, content)
    source = open_source(data_params(tmp_path, "celeba"), 0)
    assert list(source.names) == NAMES
    assert source.left_out == {CELEBA_JUNK.get(name, SYSTEM): 1, ELSEWHERE: 1}
    assert np.asarray(source.read(4)).shape == (20, 20, 3)


def test_images_in_subfolders_of_celebas_folder_are_counted(tmp_path: Path) -> None:
    write(tmp_path, celeba(tmp_path) | {"img_align_celeba/mine/000009.jpg": stored("JPEG")})
    source = open_source(data_params(tmp_path, "celeba"), 0)
    assert list(source.names) == NAMES
    assert source.left_out == {ELSEWHERE: 1}
