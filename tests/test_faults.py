"""Stages with a full disk, a read-only folder, too little memory or damaged inputs.

Each fault ends in status 1 and one line that names the file or the parameter. Nothing half-written is left, and
existing files stay unchanged.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import cut, disc_images, emptied, failure_of, flip_a_bit, run_stage, small_params

from facevae.config.paths import EPOCHS, HISTORY, LEAKAGE, MODEL
from facevae.errors import UserError, reported_errors
from facevae.evaluate.judge_training import train_classifier
from facevae.model import checkpoint
from facevae.storage.atomic import replace_folder, write_bytes
from facevae.storage.tables import parse_csv, write_json
from facevae.storage.tensors import read_tensors, write_tensors


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "src" not in path.parts}


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Have the system refuse to grow any file beyond this size, even for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("stage", "num_bytes", "path"),
    [
        ("prepare", 100, "data/prepared.partial/train.npy"),
        ("prepare", 2000, "memory shared with the decoding processes"),
        ("classifier", 2000, "models/classifier.safetensors"),
        ("train", 0, "plots/epochs/reconstructions/2.png"),
        ("evaluate", 0, "models/priors.safetensors"),
        ("figures", 0, "plots/losses.png"),
        ("editor", 0, "models/editor.html"),
    ],
)
def test_a_full_disk_is_reported_with_the_file(
    work_tree: Path, stage: str, num_bytes: int, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lasting_contents(work_tree)
    with full_disk(num_bytes):
        line = failure_of(stage, capsys)
    remedy = "free some space there, or raise the quota or size limit, then run this again"
    assert line == f"error: {path}: File too large: {remedy}"
    assert lasting_contents(work_tree) == before


def lasting_contents(folder: Path) -> dict[str, bytes]:
    """All files but the pictures of epochs, which a new training replaces one by one."""
    return {name: content for name, content in contents(folder).items() if f"{EPOCHS}/" not in name}


def test_training_resumes_after_a_full_disk(
    work_tree: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(work_tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", refuse(errno.ENOSPC))
        assert "models/vae.safetensors: No space left on device: free some space there" in failure_of("train", capsys)
    run_stage("train")
    assert "training continues after epoch 2" in caplog.text
    assert contents(work_tree) == before


def refuse(number: int) -> Callable[..., None]:
    def fail(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    return fail


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "or raise the quota"),
        (errno.EROFS, "give this user permission to read and write there"),
        (errno.EACCES, "give this user permission to read and write there"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_system_error_names_the_file_and_the_remedy(
    work_tree: Path, number: int, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(work_tree)
    system = os.fsync

    def fsync(descriptor: int) -> None:
        if MODEL.name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))  # an error of an open file does not name it
        system(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    line = failure_of("train", capsys)
    assert line.startswith(f"error: models/vae.safetensors: {os.strerror(number)}")
    assert advice in line
    left = contents(work_tree)
    assert [path for path in left if path not in before and ".facevae" not in path] == []
    assert {path: left[path] for path in before} == before


@pytest.mark.parametrize(
    ("stage", "obstacle", "named"),
    [("prepare", "data", "data"), ("classifier", "models", "models"), ("train", "plots", "plots")],
)
def test_a_file_in_place_of_a_folder_is_reported(
    work_tree: Path, stage: str, obstacle: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = work_tree / obstacle
    (work_tree / "data/prepared").rename(work_tree / "prepared")
    shutil.rmtree(moved)
    if obstacle != "data":
        (work_tree / "prepared").rename(work_tree / "data/prepared")
    moved.write_text("in the way")
    assert failure_of(stage, capsys).startswith(f"error: {named}")
    assert moved.read_text() == "in the way"


def foreign(_content: bytes) -> bytes:
    return b"not written by facevae\n"


@pytest.mark.parametrize("damage", [emptied, cut, flip_a_bit, foreign])
@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ("classifier", "data/prepared/train.npy"),
        ("train", "data/prepared/attributes.csv"),
        ("train", "data/prepared/manifest.json"),
        ("evaluate", "models/vae.safetensors"),
        ("evaluate", "models/classifier.safetensors"),
        ("figures", "models/priors.safetensors"),
        ("figures", "models/directions.safetensors"),
        ("editor", "models/vae.safetensors"),
        ("editor", "models/priors.safetensors"),
        ("editor", "models/directions.safetensors"),
    ],
)
def test_a_damaged_input_of_a_stage_is_reported(
    work_tree: Path, stage: str, path: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (work_tree / path).write_bytes(damage((work_tree / path).read_bytes()))
    before = contents(work_tree)
    with pytest.raises(SystemExit):
        run_stage(stage)
    message = capsys.readouterr().err
    assert message.startswith((f"error: {path}", "error: data/prepared is damaged"))
    assert "Traceback" not in message
    assert contents(work_tree) == before


def other_column(content: bytes) -> bytes:
    return content.replace(b"epoch", b"step").replace(b"rank", b"place").replace(b"attribute", b"name", 1)


def words_for_numbers(content: bytes) -> bytes:
    header, _, rows = content.partition(b"\n")
    return header + b"\n" + b",".join([b"many"] * (header.count(b",") + 1)) + b"\n" + rows


def not_utf8(_content: bytes) -> bytes:
    return b"epoch,rank\n\xff\xfe,1\n"


@pytest.mark.parametrize("damage", [emptied, cut, foreign, other_column, words_for_numbers, not_utf8])
@pytest.mark.parametrize(
    ("name", "stage"), [("history", "train"), ("latent", "evaluate"), ("edits", "evaluate"), ("leakage", "evaluate")]
)
def test_a_damaged_table_names_the_stage_to_run_again(
    work_tree: Path, name: str, stage: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = work_tree / f"plots/{name}.csv"
    path.write_bytes(damage(path.read_bytes()))
    line = failure_of("figures", capsys)
    assert line.startswith(f"error: plots/{name}.csv is ")
    assert line.endswith(f"run `dvc repro --force {stage}`")


def test_a_missing_table_names_the_stage_to_run(work_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work_tree / HISTORY).unlink()
    assert failure_of("figures", capsys) == "error: plots/history.csv is missing: run `dvc repro train`"


@pytest.mark.parametrize(("rows", "problem"), [(b"", "has no rows"), (b"1,nan\n", "not all values of loss")])
def test_a_history_without_finite_numbers_is_refused(rows: bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_csv(b"epoch,loss\n" + rows, HISTORY, numbers=("epoch", "loss"), stage="train")


def test_attribute_names_that_look_like_numbers_stay_text() -> None:
    content = b"attribute,0\n1,0.5\nNA,0.25\n"
    table = parse_csv(content, LEAKAGE, numbers=(), text=("attribute",), stage="evaluate")
    assert table["attribute"].to_list() == ["1", "NA"]


def change_model(work_tree: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights of the trained model; the file stays valid."""
    tensors, header = read_tensors(work_tree / MODEL, checkpoint.CheckpointHeader, remedy="")
    change(tensors)
    write_tensors(work_tree / MODEL, tensors, header)


def break_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.mean.weight"][0, 0] = float("nan")


def explode(tensors: dict[str, torch.Tensor]) -> None:
    for weight in tensors.values():
        weight.mul_(1e30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_a_weight, "models/vae.safetensors: the training exploded, encoder.mean.weight is not finite"),
        (explode, "the train split: the mean of the posteriors would be "),
    ],
)
def test_an_exploded_model_is_not_evaluated(
    work_tree: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_model(work_tree, change)
    before = contents(work_tree)
    line = failure_of("evaluate", capsys)
    assert line.startswith(f"error: {message}")
    assert "lower train.learning_rate" in line.lower()
    assert contents(work_tree) == before


@pytest.mark.parametrize("key", ["evaluate.attributes", "figures.attributes", "figures.latent_map_attributes"])
def test_an_unknown_attribute_is_reported_before_images_are_prepared(
    work_tree: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((work_tree / "params.yaml").read_text())
    section, name = key.split(".")
    tree[section][name] = ["Wings"]
    (work_tree / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    before = contents(work_tree)
    assert failure_of("prepare", capsys).startswith(
        f"error: {key}: 'Wings' is not an attribute of this data set. Known attributes: "
    )
    assert contents(work_tree) == before


@pytest.mark.parametrize("stage", ["evaluate", "figures"])
def test_a_model_of_other_image_sizes_is_refused(
    work_tree: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work_tree / "params.yaml"
    path.write_text(path.read_text().replace("image_size: 16", "image_size: 8"))
    run_stage("prepare")
    run_stage("classifier")
    capsys.readouterr()
    line = failure_of(stage, capsys)
    assert "the model takes images of shape (16, 16, 3), but the prepared ones have (8, 8, 3)" in line


def test_an_exploding_classifier_is_reported() -> None:
    params = small_params(classifier__learning_rate=1e30).classifier
    attributes = pd.DataFrame({"Odd": [0, 1] * 20})
    with pytest.raises(UserError, match="Lower classifier.learning_rate"):
        train_classifier(
            disc_images(40), attributes, params, "float32", torch.device("cpu"), horizontal_flip=False, seed=0
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "train.json"
    write_json(path, {"best_epoch": 1})
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"train.json: best_train_loss would be {value}"):
        write_json(path, {"best_epoch": 2, "best_train_loss": value})
    assert path.read_bytes() == before


def test_a_lack_of_memory_names_what_to_lower(work_tree: Path) -> None:
    path = work_tree / "params.yaml"
    path.write_text(path.read_text().replace("- 8\n  - 16", "- 4000\n  - 4000"))
    script = """
import resource, runpy
from contextlib import nullcontext
from types import SimpleNamespace
from facevae.tracking import stage_run
stage_run.open_run = lambda _: nullcontext(SimpleNamespace(log_progress=lambda _: None))
import facevae.train.loop
num_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2**27
resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
runpy.run_path("stages/train.py", run_name="__main__")
"""
    before = contents(work_tree)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "src"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=work_tree, env=environment, capture_output=True, text=True, check=False)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1
    assert line.startswith("error: memory ran out (")
    assert line.endswith("lower train.micro_batch_size, train.batch_size, sharpen.batch_size or model.channels")
    assert contents(work_tree) == before


def status_and_output(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, list[str]]:
    with pytest.raises(SystemExit) as ended, reported_errors("lower something"):
        raise error
    return ended.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_every_kind_of_memory_error_is_recognised(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = status_and_output(error, capsys)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("error: memory ran out (")
    assert lines[0].endswith("lower something")


def test_an_interrupt_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_and_output(KeyboardInterrupt(), capsys) == (130, ["interrupted"])


@pytest.mark.parametrize("error", [ValueError("oops"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_bug_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = status_and_output(error, capsys)
    assert status == 1
    assert lines[0].startswith("Traceback")
    assert str(error) in lines[-2]
    assert lines[-1].startswith("error: this is a bug in facevae")


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    target, new = tmp_path / "prepared", tmp_path / "prepared.partial"
    write_bytes(target / "manifest.json", b"former")
    with pytest.raises(FileNotFoundError):
        replace_folder(target, new)
    assert contents(tmp_path) == {str(target / "manifest.json"): b"former"}
    write_bytes(tmp_path / "prepared.old" / "manifest.json", b"left by a kill")
    write_bytes(new / "manifest.json", b"new")
    replace_folder(target, new)
    assert contents(tmp_path) == {str(target / "manifest.json"): b"new"}
