"""Data sets in the folders and archives that people have: read, or refused with what to do."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_images, small_params
from PIL import Image

from facevae.data.sources import mnist
from facevae.data.sources.dispatch import fetch, open_source
from facevae.data.sources.source import Source
from facevae.errors import UserError

Files = Mapping[str, bytes]
Refusal = Callable[..., str]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(disc_images(1, 20, seed=seed)[0]).save(buffer, kind)
    return buffer.getvalue()


NUMBERS = range(1, 6)
FACES = {f"{i:06d}.jpg": picture(i) for i in NUMBERS}
PNGS = {f"{i:06d}.png": picture(i, "PNG") for i in NUMBERS}
TXT = ("5\nMale Smiling\n" + "".join(f"{name}  1 {-1 if i % 2 else 1}\n" for i, name in enumerate(FACES))).encode()
CSV = ("image_id,Male,Smiling\n" + "".join(f"{name},1,{-1 if i % 2 else 1}\n" for i, name in enumerate(FACES))).encode()
SPLIT = "".join(f"{name} {part}\n" for name, part in zip(FACES, "00122", strict=True)).encode()
SPLIT_CSV = b"image_id,partition\n" + SPLIT.replace(b" ", b",")
EXTRAS = {"identity_CelebA.txt": b"x", "list_bbox_celeba.txt": b"x", "list_landmarks_align_celeba.txt": b"x"}
HQ = {f"{i}.jpg": picture(i) for i in range(12)}
HQ_NAMES = sorted(HQ)
HQ_TXT = ("12\nMale Smiling\n" + "".join(f"{i}.jpg  1 {-1 if i % 2 else 1}\n" for i in range(12))).encode()


def below(folder: str, files: Files) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def opened(root: Path, source: str, **changes: object) -> Source:
    data = {"source": source, "root": str(root), "num_images": None, **changes}
    params = small_params(**{f"data__{key}": value for key, value in data.items()})
    return open_source(params.data, 0)


TABLES = {"list_attr_celeba.txt": TXT, "list_eval_partition.txt": SPLIT}
KAGGLE = below("img_align_celeba/img_align_celeba", FACES) | {
    "list_attr_celeba.csv": CSV,
    "list_eval_partition.csv": SPLIT_CSV,
    "list_bbox_celeba.csv": b"x",
    "list_landmarks_align_celeba.csv": b"x",
}
CELEBA = {  # name of the layout: its files
    "flat": below("img_align_celeba", FACES) | TABLES,
    "torchvision": below("celeba", below("img_align_celeba", FACES) | TABLES | EXTRAS),
    "torchvision, with its zip": below("celeba", {"img_align_celeba.zip": zipped(below("img_align_celeba", FACES))})
    | below("celeba", TABLES | EXTRAS),
    "the authors'": {"Img/img_align_celeba.zip": zipped(below("img_align_celeba", FACES)), "README.txt": b"x"}
    | {"Anno/list_attr_celeba.txt": TXT, "Eval/list_eval_partition.txt": SPLIT}
    | below("Anno", EXTRAS),
    "the authors', unpacked": below("Img/img_align_celeba", FACES)
    | {"Anno/list_attr_celeba.txt": TXT, "Eval/list_eval_partition.txt": SPLIT},
    "the authors', below CelebA": below("CelebA/Img/img_align_celeba", FACES)
    | {"CelebA/Anno/list_attr_celeba.txt": TXT, "CelebA/Eval/list_eval_partition.txt": SPLIT},
    "Kaggle's zip": {"archive.zip": zipped(KAGGLE)},
    "Kaggle's zip, by its client": {"celeba-dataset.zip": zipped(KAGGLE)},
    "Kaggle's zip, unpacked": KAGGLE,
    "Kaggle's zip beside its content": KAGGLE | {"archive.zip": zipped(KAGGLE)},
    "Kaggle's images with text tables": {"archive.zip": zipped(below("img_align_celeba/img_align_celeba", FACES))}
    | TABLES,
    "PNG": below("img_align_celeba_png", PNGS) | TABLES,
    "PNG, the authors'": below("Img/img_align_celeba_png", PNGS)
    | {"Anno/list_attr_celeba.txt": TXT, "Eval/list_eval_partition.txt": SPLIT},
    "a zip whose name is in capitals": below("img_align_celeba", {name.upper(): face for name, face in FACES.items()})
    | TABLES,
}


@pytest.mark.parametrize("layout", CELEBA)
def test_celeba_is_read_in_every_layout(tmp_path: Path, layout: str) -> None:
    write(tmp_path, CELEBA[layout])
    before = sorted(tmp_path.rglob("*"))
    source = opened(tmp_path, "celeba", split="official")
    assert [Path(name).stem for name in source.names] == [f"{i:06d}" for i in NUMBERS]
    assert source.attributes.to_dict("list") == {"Male": [1] * 5, "Smiling": [1, 0, 1, 0, 1]}
    assert source.partition == ["train", "train", "validation", "test", "test"]
    for i, position in zip(NUMBERS, range(5), strict=True):
        pixels = np.asarray(source.read(position), dtype=int)
        assert np.abs(pixels - disc_images(1, 20, seed=i)[0]).mean() < 12
    assert sorted(tmp_path.rglob("*")) == before


CELEBA_HQ = {
    "unpacked": below("CelebAMask-HQ", below("CelebA-HQ-img", HQ))
    | {"CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt": HQ_TXT, "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt": b"x"}
    | {"CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png": picture(0, "PNG")},
    "in its own folder": below("CelebA-HQ-img", HQ) | {"CelebAMask-HQ-attribute-anno.txt": HQ_TXT},
    "its zip": {
        "CelebAMask-HQ.zip": zipped(
            below("CelebAMask-HQ/CelebA-HQ-img", HQ)
            | {"CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt": HQ_TXT}
            | {"CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png": picture(0, "PNG")}
        )
    },
}


@pytest.mark.parametrize("layout", CELEBA_HQ)
def test_celebamask_hq_is_read_with_its_own_table(tmp_path: Path, layout: str) -> None:
    write(tmp_path, CELEBA_HQ[layout])
    source = opened(tmp_path, "celeba")
    assert list(source.names) == HQ_NAMES
    smiling = {name: int(int(Path(name).stem) % 2 == 0) for name in HQ_NAMES}
    assert source.attributes["Smiling"].to_dict() == smiling
    assert source.read(3).size == (20, 20)
    with pytest.raises(UserError, match="data.split: 'official', but the images in .* have no official split: use ran"):
        opened(tmp_path, "celeba", split="official")


FOLDERS: dict[str, tuple[Files, list[str], dict[str, int]]] = {  # name: the files, the images, what is left out
    "FFHQ's numbered subfolders": (
        below("00000", {"00000.png": picture(0, "PNG"), "00001.png": picture(1, "PNG")})
        | below("01000", {"01000.png": picture(2, "PNG")})
        | {"LICENSE.txt": b"x", "ffhq-dataset-v2.json": b"{}"},
        ["00000/00000.png", "00000/00001.png", "01000/01000.png"],
        {"no image": 2},
    ),
    "LFW's folder a person": (
        below("lfw", {"Ann_A/Ann_A_0001.jpg": picture(0), "Ann_A/Ann_A_0002.jpg": picture(1)})
        | {"lfw/Bo_B/Bo_B_0001.jpg": picture(2), "lfw_attributes.txt": b"x"},
        ["lfw/Ann_A/Ann_A_0001.jpg", "lfw/Ann_A/Ann_A_0002.jpg", "lfw/Bo_B/Bo_B_0001.jpg"],
        {"no image": 1},
    ),
    "CelebA as any folder": (
        below("img_align_celeba", FACES) | {"list_attr_celeba.txt": TXT},
        [f"img_align_celeba/{name}" for name in FACES],
        {"no image": 1},
    ),
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_nested_folder_is_read(tmp_path: Path, layout: str) -> None:
    files, names, left_out = FOLDERS[layout]
    write(tmp_path, files)
    source = opened(tmp_path, "folder")
    assert list(source.names) == names
    assert source.left_out == left_out


# MNIST and its like

DIGIT = [f"Digit_{i}" for i in range(10)]
LABELS = {"train": [3, 9, 0], "t10k": [7]}


def idx(part: str, kind: str) -> bytes:
    labels = LABELS[part]
    if kind == "labels":
        return struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels)
    images = b"".join(bytes([10 * label]) * 784 for label in labels)
    return struct.pack(">4B3I", 0, 0, 8, 3, len(labels), 28, 28) + images


def mnist_files(name: str, *, compress: bool = False) -> dict[str, bytes]:
    """The four files, named by a pattern of part, kind and number of dimensions."""
    found = {}
    for part in LABELS:
        for kind, rank in (("images", 3), ("labels", 1)):
            content = idx(part, kind)
            found[name.format(part=part, kind=kind, rank=rank)] = gzip.compress(content) if compress else content
    return found


HYPHEN, DOT = "{part}-{kind}-idx{rank}-ubyte", "{part}-{kind}.idx{rank}-ubyte"
DIGITS = {  # name of the layout: the files, first attribute
    "torchvision's": (below("MNIST/raw", mnist_files(HYPHEN)), "Digit_0"),
    "dots": (mnist_files(DOT), "Digit_0"),
    "dots, in torchvision's folder": (below("MNIST/raw", mnist_files(DOT)), "Digit_0"),
    "in the root, compressed": (mnist_files(HYPHEN + ".gz", compress=True), "Digit_0"),
    "Kaggle's folders": (mnist_files(f"{DOT}/{DOT}") | {"x.txt": b"x"}, "Digit_0"),
    "Kaggle's folders with hyphens": (mnist_files(f"{HYPHEN}/{HYPHEN}"), "Digit_0"),
    "in a folder raw": (below("raw", mnist_files(HYPHEN)), "Digit_0"),
    "Fashion-MNIST": (below("FashionMNIST/raw", mnist_files(HYPHEN)), "T_shirt"),
    "KMNIST": (below("KMNIST/raw", mnist_files(HYPHEN + ".gz", compress=True)), "Kana_o"),
}


@pytest.mark.parametrize("layout", DIGITS)
def test_idx_files_are_read_in_every_layout(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, first = DIGITS[layout]
    write(tmp_path / "raw-digits", files)
    monkeypatch.setattr(mnist, "_download", pytest.fail)
    fetch(small_params(data__source="mnist", data__root=str(tmp_path / "raw-digits")).data)
    source = opened(tmp_path / "raw-digits", "mnist")
    assert source.attributes.to_numpy().argmax(axis=1).tolist() == [3, 9, 0, 7]
    assert [source.read(i).getpixel((0, 0)) for i in range(4)] == [30, 90, 0, 70]
    assert source.attributes.columns[0] == first
    assert len({*source.attributes.columns}) == 10


@pytest.mark.parametrize("name", ["fashion-mnist", "Kuzushiji", "kmnist", "FashionMNIST/raw"])
def test_the_folders_name_says_what_the_classes_are(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, mnist_files(HYPHEN))
    assert opened(tmp_path / name, "mnist").attributes.columns[0] in ("T_shirt", "Kana_o")


STRANGE = {  # name: the files, part of the error
    "KMNIST as arrays": ({"kmnist-train-imgs.npz": b"x", "kmnist-train-labels.npz": b"x"}, "kmnist-train-imgs.npz is"),
    "images without labels": ({"train-images-idx3-ubyte": idx("train", "images")}, "train-images-idx3-ubyte is there"),
    "labels without images": ({"t10k-labels.idx1-ubyte": idx("t10k", "labels")}, "t10k-labels.idx1-ubyte is there"),
    "EMNIST": ({"emnist-letters-train-images-idx3-ubyte.gz": b"x"}, "emnist-letters-train-images-idx3-ubyte.gz is"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_nothing_is_downloaded_beside_files_of_the_user(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, message = STRANGE[name]
    write(tmp_path, files)
    monkeypatch.setattr(mnist, "_download", pytest.fail)
    with pytest.raises(UserError) as error:
        fetch(small_params(data__source="mnist", data__root=str(tmp_path)).data)
    assert f"data.root: {tmp_path}/{message}" in str(error.value)


def test_two_sets_of_idx_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, below("MNIST/raw", mnist_files(HYPHEN)) | below("KMNIST/raw", mnist_files(HYPHEN)))
    with pytest.raises(UserError, match=r"MNIST/raw, .*KMNIST/raw each have files: set data.root to one of them"):
        opened(tmp_path, "mnist")


REFUSED: dict[str, tuple[str, Files, str]] = {  # name: source, files, part of the error
    "images in the root": ("celeba", FACES, "It holds files for data.source: folder. Download CelebA from"),
    "FFHQ as CelebA": ("celeba", below("00000", PNGS), "It holds files for data.source: folder."),
    "Parquet as CelebA": ("celeba", {"data/train-00000-of-00002.parquet": b"x"}, "for data.source: parquet."),
    "MNIST as CelebA": ("celeba", below("MNIST/raw", mnist_files(HYPHEN)), "for data.source: mnist."),
    "the authors' PNGs, packed": (
        "celeba",
        {"Img/img_align_celeba_png.7z.001": b"x", "Anno/list_attr_celeba.txt": TXT},
        "It holds Img/img_align_celeba_png.7z.001: unpack it.",
    ),
    "the faces in the wild, packed": ("celeba", {"Img/img_celeba.7z.001": b"x"}, "img_celeba.7z.001: unpack it."),
    "another archive.zip": ("celeba", {"archive.zip": zipped({"cats/1.jpg": b"x"})}, "archive.zip: unpack it."),
    "Kaggle's zip without tables": (
        "celeba",
        {"archive.zip": zipped(below("img_align_celeba/img_align_celeba", FACES))},
        "holds neither list_attr_celeba.txt nor list_attr_celeba.csv",
    ),
    "a table of another edition": (
        "celeba",
        below("CelebA-HQ-img", HQ) | {"list_attr_celeba.txt": TXT},
        "holds neither CelebAMask-HQ-attribute-anno.txt",
    ),
    "both editions": (
        "celeba",
        below("img_align_celeba", FACES) | TABLES | below("CelebA-HQ-img", HQ),
        "and CelebAMask-HQ, ",
    ),
    "PNG and JPEG of the same face": (
        "celeba",
        below("img_align_celeba_png", PNGS | FACES) | {"list_attr_celeba.txt": TXT.replace(b".jpg", b"")},
        "could belong together",
    ),
    "an empty folder": ("celeba", {"img_align_celeba/.keep": b""}, "found none of "),
    "a damaged table in a zip": (
        "celeba",
        {"archive.zip": zipped(KAGGLE).replace(b"image_id,Male", b"image_id,Mule")},
        "list_attr_celeba.csv cannot be read: Bad CRC-32",
    ),
    "a zip as a folder": ("folder", {"faces.zip": zipped(FACES)}, "It holds faces.zip: unpack it."),
    "a tar as a folder": ("folder", {"lfw.tgz": b"x"}, "It holds lfw.tgz: unpack it."),
    "arrays as a folder": ("folder", {"faces.npz": b"x"}, "It holds faces.npz: save its images as files"),
    "Parquet as a folder": ("folder", {"a/0.parquet": b"x"}, "It holds files for data.source: parquet."),
    "MNIST as a folder": ("folder", below("MNIST/raw", mnist_files(DOT)), "It holds files for data.source: mnist."),
    "CelebA's zip as a folder": (
        "folder",
        {"img_align_celeba.zip": zipped(below("img_align_celeba", FACES))},
        "It holds files for data.source: celeba.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_layout_is_refused_with_what_to_do(tmp_path: Path, refusal: Refusal, name: str) -> None:
    source, files, message = REFUSED[name]
    write(tmp_path / "raw", files)
    error = refusal(source)
    assert message in error
    assert str(tmp_path / "raw") in error


@pytest.mark.parametrize("source", ["celeba", "mnist", "folder", "parquet"])
@pytest.mark.parametrize(("name", "message"), [("raw", "raw is not a folder: set"), ("no", "no does not exist in ")])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, source: str, name: str, message: str) -> None:
    (tmp_path / "raw").write_bytes(zipped(KAGGLE))
    params = small_params(data__source=source, data__root=str(tmp_path / name), data__num_images=None).data
    for call in (fetch, partial(open_source, seed=0)) if source == "mnist" else (partial(open_source, seed=0),):
        with pytest.raises(UserError, match=message):
            call(params)


def test_a_forged_size_of_an_idx_file_costs_no_memory(tmp_path: Path) -> None:
    write(tmp_path, mnist_files(HYPHEN))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 28, 28) + bytes(100))
    tracemalloc.start()
    with pytest.raises(UserError, match="is not a complete IDX file"):
        opened(tmp_path, "mnist")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
