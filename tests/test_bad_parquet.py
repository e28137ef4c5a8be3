"""The catalogue of bad input, part 7: Parquet files; and the good ones, as data hubs give them."""

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import disc_images, small_params
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from facevae.data.image_file import MAX_FILE_BYTES, BadImageError
from facevae.data.preparation import prepare
from facevae.data.prepared import SPLITS, PreparedSet
from facevae.data.sources.dispatch import open_source
from facevae.data.sources.parquet import open_parquet
from facevae.data.sources.source import Source
from facevae.errors import UserError

Refusal = Callable[..., str]
Columns = dict[str, Any]
DISCS = disc_images(40, 12)
FEATURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

LARGE_FEATURE = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])


def stored(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


CONTENTS = [stored(disc) for disc in DISCS]


def features(numbers: Sequence[int], kind: pa.DataType = FEATURE) -> pa.Array:
    """A column of images as the hubs store it: bytes and a path, which need not be unique."""
    return pa.array([{"bytes": CONTENTS[i], "path": f"{i % 3}.png"} for i in numbers], kind)


def file_of(columns: Columns, **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def table_of(numbers: Sequence[int]) -> Columns:
    odd = [i % 2 == 1 for i in numbers]
    return {"image": features(numbers), "celeb_id": list(numbers), "Odd": odd, "Male": [not value for value in odd]}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pixels_of(source: Source) -> list[np.ndarray]:
    return [np.asarray(source.read(i)) for i in range(len(source.names))]


def test_several_files_are_one_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = (file_of(table_of(numbers)) for numbers in (range(7), range(7, 20), [20]))
    files = {"data/train-00000-of-00002.parquet": first, "data/train-00001-of-00002.parquet": second}
    write(tmp_path, files | {"data/z/test.PARQUET": third, "README.md": b"x", ".cache/a.parquet": b"x"})
    source = open_parquet(tmp_path, None)
    assert list(source.names[:2]) == ["data/train-00000-of-00002-000000", "data/train-00000-of-00002-000001"]
    assert source.names[-1] == "data/z/test-000000"
    assert all(np.array_equal(*pair) for pair in zip(pixels_of(source), DISCS, strict=False))
    assert source.attributes["Odd"].to_list() == [i % 2 for i in range(21)]
    assert source.attributes["Male"].to_list() == [1 - i % 2 for i in range(21)]
    assert source.left_out == {"hidden, or in a hidden folder": 1, "no Parquet file": 1}
    assert "columns that are not boolean are not used: celeb_id (int64)" in caplog.text
    few = open_parquet(tmp_path, 9)
    assert (len(few.names), few.attributes.shape) == (9, (9, 2))
    assert np.array_equal(np.asarray(few.read(8)), DISCS[8])


KINDS: dict[str, Columns] = {
    "bytes and path": {"image": features(range(9))},
    "bytes alone": {"image": pa.array(CONTENTS[:9], pa.binary())},
    "large bytes": {"photo": pa.array(CONTENTS[:9], pa.large_binary())},
    "large bytes in a struct": {
        "jpg": features(range(9), pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]))
    },
    "a mask beside it": {"image": features(range(9)), "mask": features(range(9, 18))},
    "a mask before it": {"mask": features(range(9, 18)), "image": features(range(9))},
    "a dot in its name": {"my.image": features(range(9))},
    "other types beside it": {
        "image": features(range(9)),
        "text": ["x"] * 9,
        "boxes": [[1, 2]] * 9,
        "label": pa.array([0] * 9, pa.int8()),
        "image_id": [1] * 9,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_a_column_of_images_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"a.parquet": file_of(KINDS[name])})
    source = open_parquet(tmp_path, None)
    assert all(np.array_equal(*pair) for pair in zip(pixels_of(source), DISCS[:9], strict=True))
    assert source.attributes.shape == (9, 0)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_read_in_any_order(tmp_path: Path, rows: int, compression: str) -> None:
    content = file_of(table_of(range(40)), row_group_size=rows, compression=compression)
    write(tmp_path, {"a.parquet": content, "b.parquet": file_of(table_of(range(40)))})
    source = open_parquet(tmp_path, None)
    for position in np.random.default_rng(0).integers(0, 80, 200):
        assert np.array_equal(np.asarray(source.read(int(position))), DISCS[position % 40])


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2**20)
    values = pa.array([stored(DISCS[0]) + noise for _ in range(64)], pa.binary())  # 64 MiB that cannot be compressed
    write(tmp_path, {"a.parquet": file_of({"image": values}, row_group_size=8, use_dictionary=False)})
    del values
    source = open_parquet(tmp_path, None)
    before = pa.total_allocated_bytes()
    most = 0
    for i in range(64):
        assert source.read(i).size == (12, 12)
        most = max(most, pa.total_allocated_bytes() - before)
    assert 2**20 < most < 2**25  # of 2^26 in the file


def test_parquet_is_prepared_like_any_source(tmp_path: Path) -> None:
    write(tmp_path / "raw", {f"{i}.parquet": file_of(table_of(range(10 * i, 10 * i + 10))) for i in range(4)})
    params = small_params(
        data__source="parquet", data__root=str(tmp_path / "raw"), data__num_images=None, data__image_size=12
    )
    prepare(open_source(params.data, 0), params.data, 0, tmp_path / "prepared")
    prepared = PreparedSet(tmp_path / "prepared").verified()
    for split in SPLITS:
        table = prepared.attributes(split)
        numbers = [10 * int(name[0]) + int(name[2:]) for name in table.index]
        assert table["Odd"].to_list() == [i % 2 for i in numbers]
        assert np.array_equal(prepared.images(split), DISCS[numbers])


GOOD = file_of(table_of(range(10)))
TEN = {"image": features(range(10))}
BAD_FILES: dict[str, tuple[dict[str, bytes], str]] = {  # name: the files, part of the error
    "no file": ({"a.txt": b"x"}, "holds no *.parquet file."),
    "images": ({"a.jpg": b"x"}, "holds no *.parquet file. It holds files for data.source: folder."),
    "an Arrow file": ({"a.arrow": b"x"}, "It holds a.arrow: save its images as files"),
    "an empty file": ({"a.parquet": b""}, "a.parquet cannot be read as Parquet: "),
    "text": ({"a.parquet": b"a,b\n" * 99}, "a.parquet cannot be read as Parquet: "),
    "a pointer of Git LFS": (
        {"a.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
        "a.parquet cannot be read as Parquet: ",
    ),
    "half a file": ({"a.parquet": GOOD[: len(GOOD) // 2]}, "a.parquet cannot be read as Parquet: "),
    "a file without its end": ({"a.parquet": GOOD[:-8]}, "a.parquet cannot be read as Parquet: "),
    "a second file that is damaged": ({"a.parquet": GOOD, "b.parquet": GOOD[:-8]}, "b.parquet cannot be read as "),
    "other columns": (
        {"a.parquet": GOOD, "b.parquet": file_of(TEN)},
        "b.parquet has other columns than ",
    ),
    "no rows": ({"a.parquet": file_of({"image": features([]), "Odd": pa.array([], pa.bool_())})}, "have no rows"),
    "no images": ({"a.parquet": file_of({"Odd": [True, False]})}, "a.parquet has no column of images, which are bytes"),
    "addresses": ({"a.parquet": file_of({"image": ["https://example.org/a.jpg"]})}, "no column of images"),
    "lists of pixels": ({"a.parquet": file_of({"image": [[1, 2, 3]]})}, "no column of images"),
    "a struct without bytes": ({"a.parquet": file_of({"image": [{"path": "a.jpg"}]})}, "no column of images"),
    "two columns of bytes": (
        {"a.parquet": file_of({"left": features([0]), "right": features([1])})},
        "has several columns of bytes, left, right: rename that of images to image",
    ),
    "a boolean value missing": (
        {"a.parquet": file_of({"image": features(range(3)), "Odd": [True, None, False]})},
        "a.parquet: row 1 has no value for Odd: leave the row or the column out",
    ),
    "an attribute called split": (
        {"a.parquet": file_of(TEN | {"split": [True] * 10})},
        "a column is named 'split', a name that facevae's tables use: rename it",
    ),
    "an attribute without a name": ({"a.parquet": file_of(TEN | {"": [True] * 10})}, "is '': give it a printable name"),
    "an attribute with a line end": ({"a.parquet": file_of(TEN | {"a\nb": [True] * 10})}, "'a\\nb': give it a prin"),
    "a carriage return in a name": ({"a\rb.parquet": GOOD}, "has a carriage return"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_parquet_file_is_refused(tmp_path: Path, refusal: Refusal, name: str) -> None:
    files, message = BAD_FILES[name]
    error_root = write(tmp_path / "raw", files)
    error = refusal("parquet")
    assert message in error
    assert str(error_root) in error


def with_bytes(content: bytes | None, path: str | None = "a.png") -> bytes:
    rows = [{"bytes": CONTENTS[i], "path": f"{i}.png"} for i in range(9)]
    return file_of({"image": pa.array([*rows, {"bytes": content, "path": path}], FEATURE)})


BAD_ROWS = {  # name: the file, part of the error about its last image
    "no bytes": (with_bytes(None), "a-000009: its row holds no bytes"),
    "neither bytes nor path": (with_bytes(None, None), "a-000009: its row holds no bytes"),
    "no image": (file_of({"image": pa.concat_arrays([features(range(9)), pa.nulls(1, FEATURE)])}), "holds no bytes"),
    "no bytes at all": (with_bytes(b""), "a-000009: it is empty or not an image"),
    "text": (with_bytes(b"words"), "a-000009: it is empty or not an image"),
    "half an image": (with_bytes(CONTENTS[0][:-30]), "a-000009: it cannot be decoded"),
    "gigabytes": (
        with_bytes(bytes(MAX_FILE_BYTES + 1)),
        "it has 268,435,457 bytes; the limit is 268,435,456",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_reported_with_its_number(tmp_path: Path, refusal: Refusal, name: str) -> None:
    content, message = BAD_ROWS[name]
    write(tmp_path / "raw", {"a.parquet": content})
    error = refusal("parquet")
    assert error.startswith(f"1 of 10 images under {tmp_path / 'raw'} cannot be used:\n  a-000009: ")
    assert message in error


def test_damaged_pages_are_reported_row_by_row(tmp_path: Path, refusal: Refusal) -> None:
    content = bytearray(file_of(TEN, row_group_size=5, compression="zstd", use_dictionary=False))
    start = content.index(b"\x28\xb5\x2f\xfd")  # the first page that is compressed
    content[start : start + 20] = bytes(20)
    write(tmp_path / "raw", {"a.parquet": bytes(content)})
    error = refusal("parquet")
    assert error.startswith("5 of 10 images")
    assert "a-000000: it cannot be read from a.parquet: " in error


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4), st.booleans())
def test_an_edited_parquet_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, where: float, new: bytes, at_end: bool
) -> None:
    start = len(GOOD) - 1 - int(where * 900) if at_end else int(where * len(GOOD))
    root = write(tmp_path_factory.mktemp("edited"), {"a.parquet": GOOD[:start] + new + GOOD[start + len(new) :]})
    logging.disable()
    try:
        source = open_parquet(root, None)
    except UserError as error:
        assert str(root) in str(error)  # noqa: PT017
        return
    finally:
        logging.disable(logging.NOTSET)
    for position in range(min(len(source.names), 20)):
        try:
            source.read(position)
        except BadImageError as error:
            assert str(error).startswith("it")  # noqa: PT017
