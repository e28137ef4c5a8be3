"""The catalogue of bad input, part 2: files that are not complete images, and unusual ones that are."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_images, small_params
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from facevae.data.image_file import MAX_FILE_BYTES, BadImageError, read_image
from facevae.data.preparation import prepare
from facevae.data.prepared import SPLITS, PreparedSet
from facevae.data.sources.dispatch import open_source

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
DISC = Image.fromarray(disc_images(1, 48)[0])
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
KINDS = "it is empty or not an image (AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"temp").replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ")  # swaps red and blue
Refusal = Callable[..., str]


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def floats(values: list[float]) -> Image.Image:
    return Image.fromarray(np.array([values], np.float32))


def deep(*values: int) -> bytes:
    """The row of a PNG with 16 bits a value."""
    return b"\0" + np.array(values, ">u2").tobytes()


def tiff(bits: list[int], photometric: int, content: bytes, kind: int = 1) -> bytes:
    """An uncompressed TIFF of two pixels: bits of each channel, and kind 1 (unsigned) or 2 (signed)."""
    start = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 2), (257, 4, 1), (258, 3, start if len(bits) > 2 else bits[0]), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, start + 6), (277, 3, len(bits)), (278, 4, 1), (279, 4, len(content)), (339, 3, kind)]
    counts = {258: len(bits)}
    entries = [struct.pack("<HHII", tag, form, counts.get(tag, 1), value) for tag, form, value in tags]
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return header + struct.pack("<3H", *(bits * 3)[:3]) + content


def png(width: int, height: int, content: bytes, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 0) -> bytes:
    """A PNG file whose header may be wrong; colour 0: grey, 2: RGB, 4: grey and alpha, 6: RGB and alpha."""
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def write_gigabytes_of_nothing(path: Path) -> None:
    path.write_bytes(stored(DISC, "WEBP"))
    os.truncate(path, MAX_FILE_BYTES + 1)


TEXT_BOMB, PROFILE_BOMB = ((kind, b"key\0\0" + zlib.compress(bytes(10**8))) for kind in (b"zTXt", b"iCCP"))
BAD = {  # name: a function that makes the file, part of the error
    "empty": (write(b""), KINDS),
    "text": (write(b"not an image"), KINDS),
    "a web page": (write(b"<!DOCTYPE html><title>404</title>"), KINDS),
    "SVG": (write(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), KINDS),
    "PostScript": (write(stored(DISC, "EPS")), KINDS),
    "PDF": (write(stored(DISC, "PDF")), KINDS),
    "no pixels": (write(png(0, 5, b"")), KINDS),
    "a negative size": (write(b"P6 -1 10 255\n"), KINDS),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "it cannot be decoded: No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "it cannot be decoded: Too many levels of symbolic links"),
    "a pipe": (os.mkfifo, "it is not a file"),
    "pixels missing": (write(png(9000, 9000, b"")), "it cannot be decoded: image file is truncated"),
    "a row missing": (write(b"P6 2 2 255\n" + bytes(6)), "it cannot be decoded: image file is truncated"),
    "a bomb": (write(png(30_000, 30_000, bytes(30_000 * 3751), bits=1)), "it has more than 89478485 pixels"),
    "2^62 pixels": (write(png(2**31 - 1, 2**31 - 1, b"")), "it has more than 89478485 pixels"),
    "a GIF bomb": (write(stored(DISC, "GIF").replace(b"\x30\0\x30\0", b"\xff" * 4, 1)), "more than 89478485 pixels"),
    "a text bomb": (write(png(1, 1, bytes(2), TEXT_BOMB)), "it cannot be decoded: Decompressed data"),
    "a profile bomb": (write(png(1, 1, bytes(2), PROFILE_BOMB)), "it cannot be decoded: Decompressed data"),
    "gigabytes": (write_gigabytes_of_nothing, "it has 268,435,457 bytes; the limit is 268,435,456"),
    "floats to 255": (
        write(stored(Image.fromarray(np.array([[0, 0.5, 255]], np.float32)), "TIFF")),
        "its floats go from 0 to 255, but only 0 to 1 has a known meaning",
    ),
    "floats below 0": (write(stored(floats([-1, 1]), "TIFF")), "its floats go from -1 to 1, but only 0 to 1"),
    "infinity": (write(stored(floats([0.2, np.inf]), "TIFF")), "its floats go from 0.2 to inf"),
    "a PFM to 255": (write(b"Pf\n2 1\n-1.0\n" + np.array([255, 1], "<f4").tobytes()), "its floats go from 1 to 255"),
    "32 bits to 255": (
        write(stored(Image.fromarray(np.array([[0, 255]], np.int32)), "TIFF")),
        "its integers of 32 bits, from 0 to 255, have no known range: save it with 8 or 16 bits",
    ),
    "32 bits": (write(stored(Image.fromarray(np.array([[0, 2**31 - 1]], np.int32)), "TIFF")), "have no known range"),
    "signed 16 bits": (write(tiff([16], 1, np.array([-9, 9], "<i2").tobytes(), kind=2)), "from -9 to 9, have no"),
    "12 bits in 16": (write(png(2, 1, deep(4095, 9), bits=16)), "its values of 16 bits are all below 16,384"),
    "14 bits in 16": (write(png(2, 1, deep(16383, 9), bits=16)), "its values of 16 bits are all below 16,384"),
    "12 bits in 16, RGB": (write(png(2, 1, deep(*[4095] * 6), bits=16, colour=2)), "16 bits are all below 16,384"),
    "12 bits in 16, RGBA": (
        write(png(1, 1, deep(4095, 9, 9, 65535), bits=16, colour=6)),
        "16 bits are all below 16,384",
    ),
    "12 bits in 16, grey and alpha": (write(png(1, 1, deep(4095, 65535), bits=16, colour=4)), "all below 16,384"),
    "12 bits in 16, TIFF": (write(stored(Image.fromarray(np.array([[4095, 9]], np.uint16)), "TIFF")), "below 16,384"),
    "12 bits in 16, RGB TIFF": (
        write(tiff([16] * 3, 2, np.full(6, 4095, "<u2").tobytes())),
        "its values of 16 bits are all below 16,384",
    ),
    "NaN": (
        write(stored(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")),
        "it cannot be decoded: a pixel is not a number",
    ),
}


@pytest.fixture
def raw(write_images: Callable[..., Path]) -> Path:
    """A folder of ten good images."""
    return write_images([f"{i}.png" for i in range(10)], folder="raw")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_reported_with_its_name_and_reason(raw: Path, refusal: Refusal, name: str) -> None:
    make, message = BAD[name]
    make(raw / "bad.jpg")
    error = refusal("folder")
    assert error.startswith(f"1 of 11 images under {raw} cannot be used:\n  bad.jpg: ")
    assert message in error


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_image_is_refused(raw: Path, refusal: Refusal, kind: str) -> None:
    content = stored(NOISE, kind)
    for tenth in range(10):
        (raw / f"cut-{tenth}.jpg").write_bytes(content[: len(content) * tenth // 10])
    error = refusal("folder")
    assert error.startswith(f"10 of 20 images under {raw} cannot be used")
    assert all(f"\n  cut-{tenth}.jpg: it " in error for tenth in range(10))
    whole = read_image(io.BytesIO(content)).tobytes()
    for length in range(len(content) - 40, len(content)):  # losing only the end marker loses no pixel
        with suppress(BadImageError):
            assert read_image(io.BytesIO(content[:length])).tobytes() == whole


def test_an_image_smaller_than_the_crop_is_reported(raw: Path, refusal: Refusal) -> None:
    Image.new("RGB", (7, 30)).save(raw / "narrow.png")
    assert "\n  narrow.png: it is 7 x 30 pixels, smaller than data.crop 20\n" in refusal("folder", crop=20)


def test_a_folder_without_images_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "raw" / "folder.jpg").mkdir(parents=True)
    assert "holds no image (AVIF, BMP, " in refusal("folder")


@pytest.mark.parametrize("name", ["a\udcff.png", "a\rb.png"])
def test_a_file_name_that_csv_cannot_hold_is_refused(raw: Path, refusal: Refusal, name: str) -> None:
    (raw / "0.png").rename(raw / name)
    assert f"the file name {name!r} under {raw} is not UTF-8, or has a carriage return" in refusal("folder")


def test_a_root_that_is_not_a_folder_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "raw").write_text("no folder")
    assert f"data.root: {tmp_path / 'raw'} is not a folder" in refusal("folder")


def test_too_few_images_are_refused(raw: Path, refusal: Refusal) -> None:
    assert f"data.num_images: 11, but {raw} holds only 10" in refusal("folder", num_images=11)


def test_an_empty_split_is_refused(raw: Path, refusal: Refusal) -> None:
    assert "leave no test images" in refusal("folder", test_fraction=0.01), raw


def clear_and_black(mode: str) -> Image.Image:
    """Two pixels: a transparent black one, and an opaque one that is red, or white in grey."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*(WHITE if mode == "LA" else RED), 255))
    return image.convert(mode)


def palette_with_a_clear_colour() -> bytes:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, *RED])
    image.putpixel((1, 0), 1)
    return stored(image, "PNG", transparency=0)


def animation(kind: str) -> bytes:
    return stored(Image.new("RGB", (2, 1), RED), kind, save_all=True, append_images=[Image.new("RGB", (2, 1), BLUE)])


DEEP = np.array([[257 * 100, 65535]], dtype=np.uint16)
CYAN = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
UNUSUAL = {  # name: the file, its two pixels
    "PNG": (stored(Image.new("RGB", (2, 1), RED), "PNG"), [RED, RED]),
    "GIF": (stored(Image.new("RGB", (2, 1), RED), "GIF"), [RED, RED]),
    "animated GIF": (animation("GIF"), [RED, RED]),
    "animated PNG": (animation("PNG"), [RED, RED]),
    "RGBA": (stored(clear_and_black("RGBA"), "PNG"), [WHITE, RED]),
    "grey with alpha": (stored(clear_and_black("LA"), "PNG"), [WHITE, WHITE]),
    "palette with alpha": (palette_with_a_clear_colour(), [WHITE, RED]),
    "CMYK": (stored(CYAN, "TIFF"), [(0, 255, 255)] * 2),
    "CMYK JPEG": (stored(CYAN, "JPEG", quality=100), [(0, 255, 255)] * 2),
    "CMYK with an RGB profile": (stored(CYAN, "TIFF", icc_profile=SWAPPED), [(0, 255, 255)] * 2),
    "16 bits": (stored(Image.fromarray(DEEP), "PNG"), [100, 255]),
    "16 bits, RGB": (png(2, 1, deep(*[65535, 0, 0] * 2), bits=16, colour=2), [RED, RED]),
    "16 bits, black": (png(2, 1, deep(0, 0), bits=16), [0, 0]),
    "16 bits, a negative": (tiff([16], 0, np.array([65535, 257 * 100], "<u2").tobytes()), [0, 155]),
    "16 bits, PGM": (b"P5 2 1 65535\n" + np.array([65535, 257 * 100], ">u2").tobytes(), [255, 100]),
    "12 bits, PGM": (b"P5 2 1 4095\n" + np.array([4095, 0], ">u2").tobytes(), [255, 0]),
    "12 bits, TIFF": (tiff([12], 1, b"\xff\xf8\x00"), [255, 128]),
    "floats": (stored(floats([0.2, 1]), "TIFF"), [51, 255]),
    "PFM": (b"Pf\n2 1\n-1.0\n" + np.array([0.2, 1], "<f4").tobytes(), [51, 255]),
    "1 bit": (stored(Image.new("1", (2, 1), 1), "PNG"), [255, 255]),
    "another profile": (stored(Image.new("RGB", (2, 1), RED), "PNG", icc_profile=SWAPPED), [BLUE, BLUE]),
    "another profile and alpha": (stored(clear_and_black("RGBA"), "PNG", icc_profile=SWAPPED), [WHITE, BLUE]),
    "another profile and a palette": (
        stored(Image.new("RGB", (2, 1), RED).quantize(2), "PNG", icc_profile=SWAPPED),
        [BLUE, BLUE],
    ),
    "a damaged profile": (stored(Image.new("RGB", (2, 1), RED), "PNG", icc_profile=b"none"), [RED, RED]),
    "grey with an RGB profile": (stored(Image.new("L", (2, 1), 9), "PNG", icc_profile=SWAPPED), [9, 9]),
    "more bytes than pixels": (png(2, 1, bytes(10**6)), [0, 0]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_is_decoded_by_its_content(tmp_path: Path, name: str) -> None:
    content, expected = UNUSUAL[name]
    (tmp_path / "image.jpg").write_bytes(content)
    pixels = np.asarray(read_image(tmp_path / "image.jpg"))
    assert pixels.tolist() == np.array([expected]).tolist()


@pytest.mark.parametrize("orientation", range(10))
def test_exif_rotation_matches_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(DISC.crop((0, 0, 30, 40)), "JPEG", exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).tobytes()
    assert read_image(io.BytesIO(content)).tobytes() == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 500)])
def test_a_tiny_image_fills_the_square(raw: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    for path in raw.iterdir():
        Image.new("RGB", size, RED).save(path)
    params = small_params(data__source="folder", data__root=str(raw), data__num_images=None)
    prepare(open_source(params.data, 0), params.data, 0, tmp_path / "prepared")
    assert (PreparedSet(tmp_path / "prepared").images("train") == RED).all()


NAMES = [
    "with space.png",
    "two\nlines.png",
    "é 顔.png",
    "comma,.png",
    "'single' \"double\".png",
    "- 1.png",
    "a.PNG",
]


def test_unusual_file_names_survive_preparation(write_images: Callable[..., Path], tmp_path: Path) -> None:
    names = [*NAMES, *(f"folder.jpg/{name}" for name in NAMES)]
    root = write_images(names)
    (root / "one\nbad,.png").write_bytes(b"")
    params = small_params(data__source="folder", data__root=str(root), data__num_images=None, data__on_bad_image="skip")
    prepare(open_source(params.data, 0), params.data, 0, tmp_path / "prepared")
    prepared = PreparedSet(tmp_path / "prepared")
    assert sorted(name for split in SPLITS for name in prepared.attributes(split).index) == sorted(names)
    assert [bad.name for bad in prepared.manifest.bad_images] == ["one\nbad,.png"]


SMALL = [stored(DISC, kind, **options) for kind, options in [("JPEG", {}), ("PNG", {"icc_profile": SRGB}), ("GIF", {})]]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(SMALL), st.floats(0, 1, exclude_max=True), st.integers(0, 40), st.binary(max_size=8))
def test_an_edited_image_is_decoded_or_refused(content: bytes, where: float, length: int, new: bytes) -> None:
    start = int(where * len(content))
    try:
        image = read_image(io.BytesIO(content[:start] + new + content[start + length :]))
    except BadImageError as error:
        assert str(error).startswith("it ")  # noqa: PT017
    else:
        assert image.mode in {"L", "RGB"}
