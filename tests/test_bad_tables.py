"""The catalogue of bad input, part 3: attribute and partition tables."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small_params
from hypothesis import given, settings
from hypothesis import strategies as st

from facevae.data.sources.attribute_tables import read_celeba_table, rows_of, to_attributes
from facevae.data.sources.dispatch import open_source
from facevae.errors import UserError

Refusal = Callable[..., str]
NAMES = [f"00000{i}.jpg" for i in range(1, 6)]
HEADER = "image_id,Male,Smiling\n"
ROWS = "".join(f"{name},{'-1' if i else '1'},{'1' if i == 2 else '-1'}\n" for i, name in enumerate(NAMES))
CSV = HEADER + ROWS
TXT = "5\nMale Smiling\n" + ROWS.replace(",", "  ")
PARTS = "".join(f"{name} {part}\n" for name, part in zip(NAMES, "00012", strict=True))
ATTRIBUTES = {"Male": [1, 0, 0, 0, 0], "Smiling": [0, 0, 1, 0, 0]}
LAST = "000005.jpg  -1  -1\n"

BAD_TXT = {  # name: content, part of the error
    "empty": ("", "has only one column: add the others, separated by blanks"),
    "only the number of rows": ("5\n", "has only one column"),
    "a missing row": (TXT.replace(LAST, ""), "has no row for 1 of 5 images: 000005.jpg"),
    "no header": (TXT.replace("Male Smiling\n", ""), "the row of 000002.jpg has 2 value(s) and should have 3"),
    "a row too short": (TXT.replace(LAST, LAST[:-4]), "the row of 000005.jpg has 1 value(s) and should have 2"),
    "the value 7": (
        TXT.replace(LAST, LAST[:-3] + "7"),
        "000005.jpg has '7' for Smiling; allowed: -1, 0, 1, True and False",
    ),
    "NaN": (TXT.replace(LAST, LAST[:-3] + "NaN"), "000005.jpg has 'NaN' for Smiling; allowed: -1, 0, 1"),
    "a name twice": (TXT + LAST, "has more than one row for 000005.jpg"),
    "a column twice": (TXT.replace("Smiling", "Male"), "the column 'Male' appears twice"),
    "a NUL": (TXT.replace("Male", "Ma\0le"), "the name of column 2 is 'Ma\\x00le'"),
    "a column named split": (TXT.replace("Male", "split"), "a column is named 'split'"),
    "a column named attribute": (TXT.replace("Male", "attribute"), "a column is named 'attribute'"),
    "a column named name": (TXT.replace("Male", "name"), "a column is named 'name'"),
    "commas for blanks": (CSV, "has only one column"),
    "not UTF-8": ("\udcff\udcfe", "is not UTF-8 text: 'utf-8' codec can't decode"),
}
BAD_CSV = {  # the same
    "empty": ("", "has only one column: add the others, separated by commas"),
    "semicolons": (CSV.replace(",", ";"), "has only one column"),
    "tabs": (CSV.replace(",", "\t"), "has only one column"),
    "only names": ("image_id\n" + "\n".join(NAMES), "has only one column"),
    "no header": (ROWS, "has no row for 1 of 5 images: 000001.jpg"),
    "a cell too few": (CSV[:-4], "the row of 000005.jpg has 1 value(s) and should have 2"),
    "a cell too many": (CSV[:-1] + ",1", "the row of 000005.jpg has 3 value(s) and should have 2"),
    "cells too many in all rows": (
        HEADER + ROWS.replace("\n", ",1\n"),
        "the row of 000001.jpg has 3 value(s) and should",
    ),
    "-1, 0 and 1": (CSV[:-3] + "0\n", "Smiling has both -1 and 0, so that one of them may mean unknown: leave two"),
    "-1 and 0": (CSV.replace("3.jpg,-1,1", "3.jpg,-1,0"), "Smiling has both -1 and 0"),
    "-1.0 and 0": (CSV.replace("3.jpg,-1,1", "3.jpg,-1.0,0").replace("2.jpg,-1,-1", "2.jpg,-1,-1.0"), "both -1 and 0"),
    "-1, 0 and 1, in a row of no image": (CSV + "9.jpg,-1,0\n", "Smiling has both -1 and 0"),
    "unknown": (CSV[:-3] + "unknown\n", "000005.jpg has 'unknown' for Smiling; allowed: -1, 0, 1, True and False"),
    "yes": (CSV[:-3] + "yes\n", "000005.jpg has 'yes' for Smiling"),
    "0.5": (CSV[:-3] + "0.5\n", "000005.jpg has '0.5' for Smiling"),
    "2.0": (CSV[:-3] + "2.0\n", "000005.jpg has '2.0' for Smiling"),
    "-0.5": (CSV[:-3] + "-0.5\n", "000005.jpg has '-0.5' for Smiling"),
    "two rows of an image": (CSV.replace("000001.jpg", "000001") + "./000001,1,1\n", "could belong together"),
    "names of another folder": (
        CSV.replace("00000", "faces/00000"),
        "(other names there: faces/000001.jpg, faces/000002",
    ),
    "other numbers": (CSV.replace("00000", ""), "has no row for 5 of 5 images: 000001.jpg, 000002.jpg"),
    "one other name": (CSV.replace("000005", "5"), "images: 000005.jpg (other names there: 5.jpg); add the rows"),
    "names in capitals": (CSV.replace("000005.jpg", "000005.JPG-"), "has no row for 1 of 5 images: 000005.jpg"),
    "an empty cell": (CSV[:-3] + "\n", "000005.jpg has '' for Smiling; allowed: -1, 0, 1"),
    "a comma at each end": (CSV.replace("\n", ",\n"), "the name of column 4 is ''"),
    "an open quote": (CSV.replace("000005", '"000005'), "is not a CSV table: unexpected end of data"),
    "a line end in a name": (CSV.replace("Male", '"Ma\nle"'), "the name of column 2 is 'Ma\\nle'"),
    "an endless name": (CSV.replace("Male", "M" * 200_000), "is not a CSV table: field larger than"),
    "not UTF-8": ("\udcff\udcfe", "is not UTF-8 text: 'utf-8' codec can't decode"),
}
BAD_PARTITION = {  # the same
    "empty": ("", "has only one column"),
    "a missing row": (PARTS[:-13], "has no row for 1 of 5 images: 000005.jpg"),
    "a name twice": (PARTS + PARTS[-13:], "has more than one row for 000005.jpg"),
    "3": (PARTS.replace("jpg 2", "jpg 3"), "000005.jpg is in part '3'; allowed: 0, 1, 2"),
    "NaN": (PARTS.replace("jpg 2", "jpg NaN"), "000005.jpg is in part 'NaN'; allowed: 0, 1, 2"),
    "2.0": (PARTS.replace("jpg 2", "jpg 2.0"), "000005.jpg is in part '2.0'; allowed: 0, 1, 2"),
    "two columns": (PARTS.replace("\n", " 1\n"), "has 2 values for each image; a split needs one: 0, 1 or 2"),
    "only names": ("\n".join(NAMES), "has only one column"),
    "commas for blanks": (PARTS.replace(" ", ","), "has only one column"),
    "no test images": (PARTS.replace("jpg 2", "jpg 0"), "no test images"),
}

UNUSUAL = {  # name: file, content
    "blanks": ("list_attr_celeba.txt", TXT),
    "commas": ("list_attr_celeba.csv", CSV),
    "Windows line ends": ("list_attr_celeba.txt", TXT.replace("\n", "\r\n")),
    "Windows line ends and commas": ("list_attr_celeba.csv", CSV.replace("\n", "\r\n")),
    "old Macintosh line ends": ("list_attr_celeba.csv", CSV.replace("\n", "\r")),
    "a byte-order mark": ("list_attr_celeba.txt", "\ufeff" + TXT),
    "a byte-order mark and commas": ("list_attr_celeba.csv", "\ufeff" + CSV),
    "tabs for blanks": ("list_attr_celeba.txt", TXT.replace(" ", "\t")),
    "rows of other images": ("list_attr_celeba.txt", TXT + "9.jpg 7\t 7\n"),
    "rows in another order": ("list_attr_celeba.csv", HEADER + "\n".join(reversed(CSV.split("\n")[1:]))),
    "empty lines": ("list_attr_celeba.csv", CSV.replace("\n", "\n\n")),
    "blanks after commas": ("list_attr_celeba.csv", CSV.replace(",", ", ")),
    "quotes": ("list_attr_celeba.csv", CSV.replace("Male", '"Male"').replace("000003.jpg", '"000003.jpg"')),
    "floats": ("list_attr_celeba.csv", CSV.replace(",-1", ",-1.0").replace(",1", ",1.0")),
    "floats, 0 for -1": ("list_attr_celeba.csv", CSV.replace(",-1", ",0.0").replace(",1", ",1.0")),
    "booleans": ("list_attr_celeba.csv", CSV.replace(",-1", ",False").replace(",1", ",True")),
    "booleans in lower case": ("list_attr_celeba.txt", TXT.replace(" -1", " false").replace("  1", "  true")),
    "booleans in capitals": ("list_attr_celeba.csv", CSV.replace(",-1", ",FALSE").replace(",1", ",TRUE")),
    "names with ./": ("list_attr_celeba.csv", CSV.replace("0000", "./0000")),
    "names with .\\": ("list_attr_celeba.csv", CSV.replace("0000", ".\\0000")),
    "names without suffix": ("list_attr_celeba.csv", CSV.replace(".jpg", "")),
    "names with another suffix": ("list_attr_celeba.csv", CSV.replace(".jpg", ".png")),
    "names in other capitals": ("list_attr_celeba.csv", CSV.replace(".jpg", ".JPG")),
    "names with blanks": ("list_attr_celeba.csv", CSV.replace(".jpg", ".jpg ")),
    "half of the names without suffix": ("list_attr_celeba.csv", CSV.replace("3.jpg", "3")),
    "0 for -1": ("list_attr_celeba.csv", CSV.replace("-1", "0")),
}


@pytest.fixture
def raw(write_images: Callable[..., Path], tmp_path: Path) -> Path:
    """CelebA with five images and no table."""
    write_images(NAMES, folder="raw/img_align_celeba")
    return tmp_path / "raw"


def write_table(folder: Path, file: str, content: str) -> None:
    (folder / file).write_bytes(content.encode(errors="surrogateescape"))


@pytest.mark.parametrize("name", BAD_TXT)
def test_a_bad_text_table_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    content, message = BAD_TXT[name]
    write_table(raw, "list_attr_celeba.txt", content)
    error = refusal("celeba")
    assert str(raw / "list_attr_celeba.txt") in error
    assert message in error


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_table_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    content, message = BAD_CSV[name]
    write_table(raw, "list_attr_celeba.csv", content)
    error = refusal("celeba")
    assert str(raw / "list_attr_celeba.csv") in error
    assert message in error


@pytest.mark.parametrize("name", BAD_PARTITION)
def test_a_bad_partition_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    content, message = BAD_PARTITION[name]
    write_table(raw, "list_attr_celeba.txt", TXT)
    write_table(raw, "list_eval_partition.txt", content)
    assert message in refusal("celeba", split="official")


def test_a_missing_attribute_table_is_refused(raw: Path, refusal: Refusal) -> None:
    assert f"{raw} holds neither list_attr_celeba.txt nor list_attr_celeba.csv" in refusal("celeba")


def test_a_missing_partition_is_refused(raw: Path, refusal: Refusal) -> None:
    write_table(raw, "list_attr_celeba.txt", TXT)
    error = refusal("celeba", split="official")
    assert f"{raw} holds neither list_eval_partition.txt nor list_eval_partition.csv" in error


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_table_is_read(raw: Path, name: str) -> None:
    write_table(raw, *UNUSUAL[name])
    params = small_params(data__source="celeba", data__root=str(raw), data__num_images=None)
    assert open_source(params.data, 0).attributes.to_dict("list") == ATTRIBUTES


@pytest.mark.parametrize("change", ["\r\n", "\ufeff", ","])
def test_an_unusual_partition_is_read(raw: Path, change: str) -> None:
    write_table(raw, "list_attr_celeba.txt", TXT)
    content = {"\r\n": PARTS.replace("\n", "\r\n"), "\ufeff": "\ufeff" + PARTS, ",": "a,b\n" + PARTS.replace(" ", ",")}
    write_table(raw, f"list_eval_partition.{'csv' if change == ',' else 'txt'}", content[change])
    params = small_params(data__source="celeba", data__root=str(raw), data__num_images=None, data__split="official")
    assert open_source(params.data, 0).partition == ["train", "train", "train", "validation", "test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,Smiling\na.png,1\n", "has no row for 1 of 2 images: b.png"),
        ("name,split\na.png,0\nb.png,1\n", "a column is named 'split'"),
        ("name;Smiling\na.png;1\nb.png;1\n", "has only one column"),
        ("name,Smiling\na.png,1\nb.png,2\n", "b.png has '2' for Smiling"),
    ],
)
def test_a_bad_table_in_a_folder_is_refused(
    write_images: Callable[..., Path], refusal: Refusal, content: str, message: str
) -> None:
    write_table(write_images(["a.png", "b.png"], folder="raw"), "attributes.csv", content)
    error = refusal("folder")
    assert "attributes.csv" in error
    assert message in error


FOLDER = {  # name: the images, the table's names, which may not be spelled in the same way
    "./": (["a.png", "b.png"], ["./a.png", "./b.png"]),
    "a backslash": (["s/a.png", "s/b.png"], ["s\\a.png", ".\\s\\b.png"]),
    "no suffix": (["s/a.png", "b.png"], ["s/a", "b"]),
    "dots": (["v1.0.png", "v1.1.png"], ["v1.0", "v1.1"]),
    "composed characters": (["e\u0301.png", "b.png"], ["\xe9.png", "b.png"]),
    "both with and without suffix": (["a.png", "a.jpg"], ["a.png", "a"]),
}


@pytest.mark.parametrize("case", FOLDER)
def test_names_find_their_image_where_that_is_unambiguous(write_images: Callable[..., Path], case: str) -> None:
    images, names = FOLDER[case]
    root = write_images(images, folder="raw")
    write_table(root, "attributes.csv", f"name,Smiling\n{names[0]},1\n{names[1]},0\n")
    params = small_params(data__source="folder", data__root=str(root), data__num_images=None)
    attributes = open_source(params.data, 0).attributes
    assert attributes["Smiling"].to_dict() == {images[0]: 1, images[1]: 0}


@pytest.mark.parametrize(
    ("images", "content", "message"),
    [
        (
            ["a.png", "a.jpg"],
            "name,Smiling\na,1\n",
            "the row(s) a and the image(s) a.jpg, a.png could belong together",
        ),
        (["a.png"], "name,Smiling\n./a,1\na,0\n", "the row(s) ./a, a and the image(s) a.png could belong"),
        (["a.png"], "name,Smiling\na.png.txt,1\n", "for 1 of 1 images: a.png (other names there: a.png.txt)"),
        (["s/a.png"], "name,Smiling\na.png,1\n", "for 1 of 1 images: s/a.png (other names there: a.png)"),
        (["a.png"], "name,Smiling\n", "has no row for 1 of 1 images: a.png; add the rows"),
    ],
)
def test_names_that_fit_none_or_several_are_refused(
    write_images: Callable[..., Path], refusal: Refusal, images: list[str], content: str, message: str
) -> None:
    write_table(write_images(images, folder="raw"), "attributes.csv", content)
    assert message in refusal("folder")


PIECES = st.sampled_from([*',";\t\0\n\r1 ', "\ufeff", "-1", "a.jpg", "b.jpg", "Male", "split"])
CONTENTS = st.binary(max_size=200) | st.lists(PIECES, max_size=40).map(lambda pieces: "".join(pieces).encode())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(CONTENTS, st.sampled_from(["edited.csv", "edited.txt"]))
def test_random_bytes_are_a_table_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, file: str
) -> None:
    path = tmp_path_factory.getbasetemp() / file
    path.write_bytes(content)
    try:
        table = read_celeba_table(path)
        attributes = to_attributes(table, list(table.index), path)
        assert set(attributes.to_numpy().flat) <= {0, 1}
        rows_of(table, ["a.jpg"], path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
