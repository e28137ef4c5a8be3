"""Files damaged at random or forged on purpose: reading them gives the same content or a `UserError`."""

import hashlib
import io
import json
import os
import re
import resource
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import disc_images, small_params
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from pydantic import BaseModel
from torch import Tensor

from facevae.data.image_file import BadImageError
from facevae.data.prepared import ATTRIBUTES, MANIFEST, SPLITS, ArrayWriter, Manifest, PreparedSet, data_digest
from facevae.data.sources.dispatch import open_source
from facevae.errors import UserError
from facevae.evaluate.directions import FittedDirections, load_directions, save_directions
from facevae.evaluate.judge import Classifier, load_classifier, save_classifier
from facevae.model import checkpoint
from facevae.model.vae import VAE
from facevae.priors import velocity as velocity_module
from facevae.priors.comparison import PriorScores
from facevae.priors.fitting import FittedPriors, load_priors, save_priors
from facevae.priors.flow_matching import FlowMatching
from facevae.priors.mixture import Mixture
from facevae.priors.normal import StandardNormal
from facevae.priors.velocity import Velocity
from facevae.storage.tensors import DIGEST_LENGTH, METADATA, read_tensors, write_tensors
from facevae.train import resume
from facevae.train.resume import ResumeFile

HEADROOM = 2**28  # bytes of memory that reading a file of some kilobytes may add
PATIENCE = 30  # seconds: far more than any of these files should take
TEXTS = ["", "NaN", "Infinity", "null", "2,2", "[" * 10**5, '{"a":' * 10**5, "9" * 10**4]
LARGE = st.integers(-(10**9), 10**30)
few = settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate])  # no shrinking


def lose_patience(*_: object) -> None:
    raise TimeoutError


@contextmanager
def limits() -> Iterator[None]:
    """Limit memory and time: a forged file must not use more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + HEADROOM, before[1]))
    signal.signal(signal.SIGALRM, lose_patience)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True)
class Reader:
    """A valid file and its reader: `load` returns the content in a form that can be compared."""

    path: Path
    load: Callable[[Path], object]

    def load_or_refuse(self, content: bytes) -> object:
        """What `load` makes of a file with this content, or None if it is refused within the limits."""
        target = self.path.with_name("damaged")
        target.write_bytes(content)
        try:
            with limits():
                return self.load(target)
        except UserError as error:
            assert "alloc" not in str(error)  # noqa: PT017
            return None


def comparable(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    return {key: (str(t.dtype), [*t.shape], t.contiguous().numpy().tobytes()) for key, t in tensors.items()}


def load_checkpoint(path: Path) -> object:
    model, header = checkpoint.load(path)
    return comparable(model.state_dict()), header


def load_judge(path: Path) -> object:
    classifier = load_classifier(path, data_digest="a")
    return comparable(classifier.state_dict()), classifier.attributes


def load_all_priors(path: Path) -> object:
    fitted = load_priors(path, fingerprint="a")
    return (
        comparable(fitted.flow.velocity.state_dict()),
        comparable({"mean": fitted.flow.mean, "factor": fitted.flow.factor}),
        comparable(vars(fitted.mixture)),
        fitted.scores,
    )


def load_all_directions(path: Path) -> object:
    fitted = load_directions(path, fingerprint="a")
    return {method: comparable(directions) for method, directions in fitted.by_method.items()}, fitted.best


def load_progress(path: Path) -> object:
    file = ResumeFile("any")
    file.path = path
    progress = file.load()
    if progress is None:
        raise UserError("training starts over")
    return progress.rows, comparable(progress.tensors)


def some_priors() -> FittedPriors:
    eye = torch.eye(3, dtype=torch.float64)
    mixture = Mixture(eye.new_ones(1), eye.new_zeros(1, 3), eye[None])
    flow = FlowMatching(Velocity(3, 1), eye.new_zeros(3), eye.clone(), ("Odd",), torch.ones(2, 1, dtype=torch.int8))
    scores = {
        name: PriorScores(heldout_nats=nats, validation_frechet_distance=1.0, copied_share=0.0)
        for name, nats in (("normal", -1.0), ("mixture", -2.0), ("flow", float("-inf")))
    }
    return FittedPriors(StandardNormal(3), mixture, flow, scores)


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """A narrow network, so that files of priors are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(velocity_module, "WIDTH", 8)
        yield


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """A small valid file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    params = small_params(model__residual_blocks=1, model__normalization="batch")
    model = VAE(params.model, 8, 3)
    loads = {
        "checkpoint": load_checkpoint,
        "classifier": load_judge,
        "priors": load_all_priors,
        "directions": load_all_directions,
        "progress": load_progress,
    }
    files = {name: Reader(folder / name, load) for name, load in loads.items()}
    checkpoint.save(files["checkpoint"].path, model, params.train, crop=None, fingerprint="a")
    save_classifier(files["classifier"].path, Classifier(64, 3, ("Smiling",)), data_digest="a")
    save_priors(files["priors"].path, some_priors(), fingerprint="a")
    directions = FittedDirections({"joint": {"Smiling": torch.ones(3)}, "original": {}}, "joint")
    save_directions(files["directions"].path, directions, fingerprint="a")
    rows = [{"epoch": 1.0, "train_loss": float("inf")}]
    write_tensors(files["progress"].path, {"best.weight": torch.ones(3)}, resume.ResumeHeader(rows=rows, previews=[]))
    for file in files.values():
        assert file.load_or_refuse(file.path.read_bytes()) == file.load(file.path)
    return files


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: these files need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


KINDS = ["checkpoint", "classifier", "priors", "directions", "progress"]


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few byte edits, most of them near the start, where the header is."""
    edits = draw(st.lists(st.tuples(st.sampled_from("fcixl"), st.floats(0, 1), st.binary(max_size=9)), min_size=1))

    def apply(content: bytes) -> bytes:
        for kind, where, new in edits:
            position = int(len(content) * where**3)
            before, after = content[:position], content[position:]
            content = {
                "f": before + bytes(byte ^ 1 << len(new) % 8 for byte in after[:1]) + after[1:],  # flip a bit
                "c": before,  # cut
                "i": before + new + after,  # insert
                "x": before + new + after[len(new) :],  # overwrite
                "l": struct.pack("<Q", (position << len(new) * 7) % 2**64) + content[8:],  # the header's length
            }[kind]
        return content

    return apply


@few
@given(damage())
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_unchanged(
    readers: dict[str, Reader], kind: str, damage: Callable[[bytes], bytes]
) -> None:
    reader = readers[kind]
    assert reader.load_or_refuse(damage(reader.path.read_bytes())) in (None, reader.load(reader.path))


class Anything(BaseModel):
    """Any header."""


class Text(BaseModel):
    """A header of any text, which gets a valid digest."""

    text: str

    def model_dump_json(self, **_: Any) -> str:
        return self.text


def forged(reader: Reader, tensors: Mapping[str, Tensor], text: str) -> bytes:
    """A file with these tensors, this header text and a valid digest."""
    path = reader.path.with_name("forged")
    write_tensors(path, dict(tensors), Text(text=text))
    return path.read_bytes()


def stored(reader: Reader) -> tuple[dict[str, Tensor], str]:
    """The tensors and the header text of a valid file."""
    content = reader.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + length])["__metadata__"][METADATA][DIGEST_LENGTH:]
    return read_tensors(reader.path, Anything, remedy="")[0], text


@few
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_header_does_no_harm(readers: dict[str, Reader], kind: str, data: st.DataObject) -> None:
    """Replace a number in the header by any other, or a piece of its text by something else."""
    reader = readers[kind]
    tensors, text = stored(reader)
    spans = [match.span() for match in re.finditer(r"(?<=[:\[,])-?[\d.]+(?=[,\]}])", text)]
    if data.draw(st.booleans()) and spans:
        start, stop = data.draw(st.sampled_from(spans))
        new = str(data.draw(LARGE | st.floats()))
    else:
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, len(text)))
        new = data.draw(st.sampled_from(TEXTS) | st.text(max_size=9))
    reader.load_or_refuse(forged(reader, tensors, text[:start] + new + text[stop:]))


FORGERIES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda _: None,
    "another type": lambda tensor: tensor.to(torch.complex64),
    "half precision": lambda tensor: tensor.half(),
    "a scalar": lambda tensor: tensor.flatten()[:1].reshape(()),
    "another rank": lambda tensor: tensor[None],
    "huge and empty": lambda tensor: tensor.new_empty(0, 10**9, 10**9),
    "huge in one dimension": lambda tensor: tensor.new_empty(10**9, 0),
    "long and thin": lambda tensor: tensor.new_ones(1, 10**5, 1),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=list(FORGERIES))
@pytest.mark.parametrize("kind", ["checkpoint", "classifier", "priors"])
def test_a_forged_tensor_is_refused(
    readers: dict[str, Reader], kind: str, forge: Callable[[Tensor], Tensor | None]
) -> None:
    reader = readers[kind]
    tensors, text = stored(reader)
    for name in [name for name, tensor in tensors.items() if tensor.ndim][::6]:
        changed = tensors | {name: forge(tensors[name])}
        left = {key: value for key, value in changed.items() if value is not None}
        path = reader.path.with_name("damaged")
        path.write_bytes(forged(reader, left, text))
        with limits(), pytest.raises(UserError, match="this version of facevae"):
            reader.load(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small prepared set with an empty test split."""
    folder = tmp_path_factory.mktemp("prepared")
    arrays = {}
    for split, number in zip(SPLITS, (4, 2, 0), strict=True):
        with ArrayWriter(folder / f"{split}.npy", (8, 8, 3)) as arrays[split]:
            arrays[split].append(disc_images(number))
    rows = "".join(f"{i}.png,{'train' if i < 4 else 'validation'},{i % 2}\n" for i in range(6))
    (folder / ATTRIBUTES).write_text(f"name,split,Smiling\n{rows}")
    parts = [*(array.digest.hexdigest() for array in arrays.values())]
    parts.append(hashlib.sha256((folder / ATTRIBUTES).read_bytes()).hexdigest())
    numbers = {split: array.length for split, array in arrays.items()}
    manifest = Manifest(
        source="folder",
        image_size=8,
        channels=3,
        crop=None,
        split="random",
        num_images=numbers,
        bad_images=[],
        left_out={},
        duplicates={},
        digest=data_digest((8, 8, 3), parts),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_set(folder: Path, files: Mapping[str, bytes]) -> object:
    """The content of a prepared set with these files, or None if it is refused."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        with limits():
            found = PreparedSet(folder)
            values = [(found.images(split).tolist(), found.attributes(split).to_csv()) for split in SPLITS]
            return found.verified().manifest, values
    except UserError:
        return None


FILES = [MANIFEST, ATTRIBUTES, "train.npy", "test.npy"]


@few
@given(damage())
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_prepared_set_is_refused_or_unchanged(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str, damage: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-set"
    found = read_set(folder, whole | {name: damage(whole[name])})
    assert found is None or name == MANIFEST or found == read_set(folder, whole)


@few
@given(st.data())
def test_a_forged_manifest_is_refused(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    manifest = json.loads(whole[MANIFEST])
    section = data.draw(st.sampled_from([manifest, manifest["num_images"]]))
    key = data.draw(st.sampled_from([key for key in section if key not in ("crop", "source", "split", "bad_images")]))
    number = data.draw(LARGE.filter(lambda number: number not in (0, 2, 3, 4, 8)) | st.floats() | st.none())
    section[key] = number
    forged_manifest = json.dumps(manifest).encode()
    assert read_set(tmp_path_factory.getbasetemp() / "forged-set", whole | {MANIFEST: forged_manifest}) is None
    del section[key]
    forged_manifest = json.dumps(manifest).encode()
    assert read_set(tmp_path_factory.getbasetemp() / "forged-set", whole | {MANIFEST: forged_manifest}) is None


def npy(header: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header.encode() + bytes(4 * 192)


def npy_of(descr: str, order: str, shape: str) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        npy_of("'|u1'", "False", f"({10**12}, 8, 8, 3)"),
        npy_of("'|u1'", "False", f"({10**30}, 8, 8, 3)"),
        npy_of("'|u1'", "False", "(-4, 8, 8, 3)"),
        npy_of("'|u1'", "False", "(True, 8, 8, 3)"),
        npy_of("'|u1'", "True", "(4, 8, 8, 3)"),
        npy_of("'|O'", "False", "(4, 8, 8, 3)"),
        npy_of("('|u1', (1000000000,))", "False", "(4, 8, 8, 3)"),
        npy("-" * 9000 + "1"),
        npy("(" * 9000),
        npy("{{}: 1}"),
        npy("", version=9),
    ],
)
@pytest.mark.parametrize("name", ["train.npy", "test.npy"])
def test_a_forged_array_is_refused(whole: dict[str, bytes], tmp_path: Path, name: str, content: bytes) -> None:
    assert read_set(tmp_path / "set", whole) is not None
    assert read_set(tmp_path / "set", whole | {name: content}) is None


@pytest.mark.parametrize("name", [MANIFEST, ATTRIBUTES, "train.npy"])
def test_a_prepared_set_without_a_file_is_refused(whole: dict[str, bytes], tmp_path: Path, name: str) -> None:
    read_set(tmp_path / "set", whole)
    (tmp_path / "set" / name).unlink()
    with pytest.raises(UserError, match=name):
        PreparedSet(tmp_path / "set").verified()


# Raw images in the files of users

ROWS = range(6)
DISCS = disc_images(len(ROWS), 12)


def saved(number: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = DISCS[number]
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if kind == "TIFF" else Image.fromarray(pixels)
    image.save(buffer, kind)
    return buffer.getvalue()


def parquet_file() -> bytes:
    feature = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": saved(i, "PNG"), "path": "a"} for i in ROWS], feature)
    buffer = io.BytesIO()
    table = pa.table({"image": images, "Smiling": [i % 2 == 1 for i in ROWS], "id": list(ROWS)})
    parquet.write_table(table, buffer, row_group_size=4)
    return buffer.getvalue()


def kaggles_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in ROWS:
            archive.writestr(f"img_align_celeba/img_align_celeba/{i}.jpg", saved(i, "JPEG"))
        archive.writestr("list_attr_celeba.csv", "image_id,Smiling\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in ROWS))
        parts = "".join(f"{i}.jpg,{i % 3}\n" for i in ROWS)
        archive.writestr("list_eval_partition.csv", f"image_id,partition\n{parts}")
    return buffer.getvalue()


def labels_csv() -> bytes:
    return "".join(["name,Smiling,Male\n", *(f"./{i},{i % 2 == 1},1.0\n" for i in ROWS)]).encode()


IDX_LABELS = struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(ROWS)
IDX_IMAGES = struct.pack(">4B3I", 0, 0, 8, 3, 6, 12, 12) + DISCS[..., 0].tobytes()
SOURCES: dict[str, tuple[str, str, Callable[[], bytes], dict[str, bytes]]] = {  # source, file, content, other files
    "parquet": ("parquet", "data/train.parquet", parquet_file, {}),
    "zip": ("celeba", "archive.zip", kaggles_zip, {}),
    "idx": ("mnist", "train-images.idx3-ubyte", lambda: IDX_IMAGES, {"train-labels.idx1-ubyte": IDX_LABELS}),
    "table": ("folder", "attributes.csv", labels_csv, {f"{i}.png": saved(i, "PNG") for i in ROWS}),
    "no suffix": ("folder", "image", lambda: saved(0, "PNG"), {"1.jpg": saved(1, "JPEG")}),
    "AVIF": ("folder", "0.avif", lambda: saved(0, "AVIF"), {}),
    "16 bits": ("folder", "0.tif", lambda: saved(0, "TIFF"), {}),
    "PFM": ("folder", "0.pfm", lambda: b"Pf\n4 2\n-1.0\n" + bytes(32), {}),
}


@few
@given(damage())
@pytest.mark.parametrize("kind", SOURCES)
def test_damaged_raw_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    """Whatever is read has the right form, and each error is one of ours, within the limits of memory and time."""
    source, name, make, others = SOURCES[kind]
    root = tmp_path_factory.mktemp("raw")
    for file, content in {**others, name: damage(make())}.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(content)
    data = {"source": source, "root": str(root), "num_images": None, "split": "official" if kind == "zip" else "random"}
    params = small_params(**{f"data__{key}": value for key, value in data.items()}).data
    with limits(), suppress(UserError):
        opened = open_source(params, 0)
        assert len(set(opened.names)) == len(opened.names) == len(opened.attributes)
        assert set(opened.attributes.to_numpy().flat) <= {0, 1}
        assert opened.partition is None or set(opened.partition) <= set(SPLITS)
        for position in range(min(len(opened.names), 20)):
            with suppress(BadImageError):
                assert opened.read(position).mode in ("L", "RGB")


@pytest.mark.parametrize("kind", SOURCES)
def test_whole_raw_files_are_read(tmp_path: Path, kind: str) -> None:
    source, name, make, others = SOURCES[kind]
    for file, content in {**others, name: make()}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    params = small_params(data__source=source, data__root=str(tmp_path), data__num_images=None).data
    with limits():
        opened = open_source(params, 0)
        assert [opened.read(i).mode in ("L", "RGB") for i in range(len(opened.names))] == [True] * len(opened.names)
    assert len(opened.names) == {"no suffix": 2, "AVIF": 1, "16 bits": 1, "PFM": 1}.get(kind, 6)
