"""The catalogue of bad input, part 4: zip and IDX files."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_images, small_params
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facevae.data.image_file import MAX_FILE_BYTES, BadImageError
from facevae.data.sources.celeba import open_celeba
from facevae.data.sources.dispatch import open_source
from facevae.data.sources.mnist import open_mnist
from facevae.errors import UserError

NAMES = [f"00000{i}.jpg" for i in range(1, 6)]
LOCAL, CENTRAL = b"PK\3\4\x14\0", b"PK\1\2\x14\3\x14\0"  # the first bytes of a member's two headers
Refusal = Callable[..., str]


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(disc_images(1, 20, seed=seed)[0]).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of five images and `extra` members, which may replace images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as archive:
        for name, content in {**{f"img_align_celeba/{name}": jpeg() for name in NAMES}, **(extra or {})}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_flags(flags: int, method: int) -> bytes:
    """A zip whose headers claim these flags (1: encrypted) and this compression method."""
    new = struct.pack("<2H", flags, method)
    content = zipped()
    for begin in (LOCAL, CENTRAL):
        content = content.replace(begin + bytes(4), begin + new)
    return content


def flipped(compression: int) -> bytes:
    content = bytearray(zipped(compression=compression))
    content[150:300] = bytes(byte ^ 0x55 for byte in content[150:300])
    return bytes(content)


def alone(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


FIRST = "img_align_celeba/000001.jpg"
BAD_ZIPS = {  # name: the zip, part of the error
    "empty": (b"", "is not a complete zip file (File is not a zip file): download it again"),
    "only its start": (zipped()[:500], "is not a complete zip file"),
    "half of it": (zipped()[: len(zipped()) // 2], "is not a complete zip file"),
    "without its start": (zipped()[100:], "1 of 5 images"),
    "without members": (b"PK\5\6" + bytes(18), "holds no img_align_celeba/*.jpg"),
    "a zip in a zip": (alone("img_align_celeba.zip", zipped()), "holds no img_align_celeba/*.jpg"),
    "paths out of the folder": (alone("../img_align_celeba/000001.jpg", jpeg()), "holds no img_align_celeba/*.jpg"),
    "absolute paths": (alone("/img_align_celeba/000001.jpg", jpeg()), "holds no img_align_celeba/*.jpg"),
    "an image twice": (
        zipped({"000001.jpg": jpeg()}),
        "holds 000001.jpg 2 times: pack the zip again with each image once",
    ),
    "a zip as an image": (zipped({FIRST: alone("a", b"")}), "000001.jpg: it is empty or not an image"),
    "encrypted": (with_flags(1, 0), "File 'img_align_celeba/000001.jpg' is encrypted"),
    "an unknown method": (with_flags(0, 99), "That compression method is not supported"),
    "damage": (flipped(zipfile.ZIP_STORED), "000001.jpg: it cannot be "),
    "damage under deflate": (flipped(zipfile.ZIP_DEFLATED), "000001.jpg: it cannot be "),
    "damage under bzip2": (flipped(zipfile.ZIP_BZIP2), "000001.jpg: it cannot be "),
    "damage under LZMA": (flipped(zipfile.ZIP_LZMA), "000001.jpg: it cannot be "),
    "a bomb": (
        zipped({FIRST: jpeg() + bytes(MAX_FILE_BYTES)}, zipfile.ZIP_DEFLATED),
        "bytes; the limit is 268,435,456",
    ),
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with the attributes of five images, but without the images."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "list_attr_celeba.txt").write_text("5\nMale\n" + "".join(f"{name} 1\n" for name in NAMES))
    return folder


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_a_bad_zip_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    content, message = BAD_ZIPS[name]
    (raw / "img_align_celeba.zip").write_bytes(content)
    assert message in refusal("celeba")


def test_other_members_of_a_zip_are_ignored(raw: Path, tmp_path: Path) -> None:
    extra = {"../000001.jpg": b"", "/000002.jpg": b"", "img_align_celeba/../000003.jpg": b"", "notes.txt": b""}
    (raw / "img_align_celeba.zip").write_bytes(b"a program before it" + zipped(extra, zipfile.ZIP_LZMA))
    before = sorted(tmp_path.rglob("*"))
    params = small_params(data__source="celeba", data__root=str(raw), data__num_images=None)
    source = open_source(params.data, 0)
    assert list(source.names) == NAMES
    assert [source.read(i).size for i in range(5)] == [(20, 20)] * 5
    assert sorted(tmp_path.rglob("*")) == before


def idx(*sizes: int, content: bytes = b"", kind: int = 8) -> bytes:
    return struct.pack(f">4B{len(sizes)}I", 0, 0, kind, len(sizes), *sizes) + content


ONES = np.ones((5, 28, 28), np.uint8).tobytes()
IMAGES, LABELS = idx(5, 28, 28, content=ONES), idx(5, content=bytes(5))
BAD_IDX = {  # name: images, labels, part of the error
    "empty": (b"", LABELS, "ubyte cannot be read"),
    "half a header": (IMAGES[:10], LABELS, "ubyte cannot be read"),
    "a byte missing": (IMAGES[:-1], LABELS, "ubyte is not a complete IDX file of bytes"),
    "a byte too many": (IMAGES + b"0", LABELS, "ubyte is not a complete IDX file of bytes"),
    "2^96 pixels": (idx(*[2**32 - 1] * 3), LABELS, "ubyte is not a complete IDX file of bytes"),
    "no pixel": (idx(5, 0, 28), LABELS, "ubyte is not a complete IDX file of bytes"),
    "floats": (
        idx(5, 28, 28, content=ONES, kind=13),
        LABELS,
        "ubyte is not a complete IDX file of bytes",
    ),
    "labels for images": (LABELS + bytes(8), LABELS, "ubyte is not a complete IDX file of bytes"),
    "a label missing": (IMAGES, idx(4, content=bytes(4)), "5 images but 4 labels"),
    "a label of 10": (IMAGES, idx(5, content=bytes([1, 2, 3, 4, 10])), "a label is 10, not one of ten classes"),
}
BAD_GZIPS = {  # name: images, part of the error
    "not gzip": (b"words", "cannot be read: Not a gzipped file"),
    "half a gzip": (gzip.compress(IMAGES)[:40], "cannot be read: Compressed file ended"),
    "a bomb": (gzip.compress(IMAGES + bytes(2**27), compresslevel=1), "is not a complete IDX file of bytes"),
}


def write_mnist(root: Path, images: bytes, labels: bytes, part: str = "train", suffix: str = "") -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(images)
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.parametrize("name", BAD_IDX)
def test_a_bad_idx_file_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    images, labels, message = BAD_IDX[name]
    write_mnist(raw, images, labels)
    assert message in refusal("mnist")


@pytest.mark.parametrize("name", BAD_GZIPS)
def test_a_bad_gzip_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    images, message = BAD_GZIPS[name]
    write_mnist(raw, images, LABELS, suffix=".gz")
    assert f"train-images-idx3-ubyte.gz {message}" in refusal("mnist")


def test_mnist_parts_of_different_image_sizes_are_refused(raw: Path, refusal: Refusal) -> None:
    write_mnist(raw, IMAGES, LABELS)
    write_mnist(raw, idx(1, 2, 2, content=bytes(4)), idx(1, content=b"0"), part="t10k")
    assert "training and test images differ in size" in refusal("mnist")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, len(zipped())), st.binary(min_size=1, max_size=4), st.booleans())
def test_an_edited_zip_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, where: int, new: bytes, in_directory: bool
) -> None:
    root = tmp_path_factory.mktemp("zip")
    (root / "list_attr_celeba.txt").write_text("5\nMale\n" + "".join(f"{name} 1\n" for name in NAMES))
    content = zipped()
    start = len(content) - where % 400 - 1 if in_directory else where - 1
    (root / "img_align_celeba.zip").write_bytes(content[:start] + new + content[start + len(new) :])
    try:
        source = open_celeba(root, None, official=False)
    except UserError as error:
        assert str(root) in str(error)  # noqa: PT017
        return
    for position in range(len(source.names)):
        try:
            source.read(position)
        except BadImageError as error:
            assert str(error).startswith("it ")  # noqa: PT017


EDITED = st.tuples(st.integers(0, 16), st.binary(max_size=4)).map(lambda edit: IMAGES[: edit[0]] + edit[1])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=40) | EDITED)
def test_random_bytes_are_never_digits(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.mktemp("idx")
    write_mnist(root, content, LABELS)
    write_mnist(root, IMAGES, content, part="t10k")
    with pytest.raises(UserError, match="ubyte"):
        open_mnist(root, None)
