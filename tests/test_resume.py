import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from conftest import cut, dvc, emptied, flip_a_bit
from filelock import FileLock

from facevae.train import resume
from facevae.train.loop import Progress
from facevae.train.resume import MAX_FILES, SECONDS_TO_REST, ResumeFile

PROGRESS = Progress(
    [{"epoch": 1, "train_loss": 2.5}, {"epoch": 2, "train_loss": 1.25}],
    {
        "model.weight": torch.arange(48.0).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
        "model.num_batches_tracked": torch.tensor(7),
        "optimizer.0.step": torch.tensor(14.0),
    },
    [{"samples": b"one"}, {"samples": b"two", "reconstructions": b"\x00\xff"}],
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def assert_equal(loaded: Progress | None, expected: Progress = PROGRESS) -> None:
    assert loaded is not None
    assert loaded.rows == expected.rows
    assert loaded.previews == expected.previews
    assert loaded.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_progress_is_found_only_by_its_fingerprint() -> None:
    ResumeFile("mine").save(PROGRESS)
    assert_equal(ResumeFile("mine").load())
    assert ResumeFile("other").load() is None


def test_saving_replaces_earlier_progress() -> None:
    later = Progress([*PROGRESS.rows, {"epoch": 3, "train_loss": 1.0}], PROGRESS.tensors)
    file = ResumeFile("mine")
    file.save(PROGRESS)
    file.save(later)
    assert_equal(file.load(), later)
    assert len(list(file.path.parent.iterdir())) == 1


def test_removing_leaves_only_the_lock(root: Path) -> None:
    file = ResumeFile("mine")
    file.save(PROGRESS)
    (file.path.parent / ".mine.partial").write_bytes(b"from a process killed while saving")
    file.remove()
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["resume.lock"]
    file.remove()


@pytest.mark.parametrize("damage", [emptied, cut, flip_a_bit, lambda content: content + b"x"])
def test_a_damaged_file_is_removed_with_a_warning(
    damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = ResumeFile("mine")
    file.save(PROGRESS)
    file.path.write_bytes(damage(file.path.read_bytes()))
    assert file.load() is None
    assert f"{file.path} is damaged" in caplog.text
    assert "training starts over" in caplog.text
    assert not file.path.exists()


def test_a_full_disk_costs_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file = ResumeFile("mine")
    file.save(PROGRESS)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_tensors", no_space)
    file.save(Progress([], {}))
    assert "(No space left on device): if training stops now" in caplog.text
    assert_equal(file.load())


def test_a_file_in_place_of_the_folder_costs_warnings(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / ".facevae").write_text("in the way")
    file = ResumeFile("mine")
    assert file.load() is None
    file.save(PROGRESS)
    file.remove()
    assert "cannot write" in caplog.text
    assert "cannot remove" in caplog.text


def test_only_the_newest_abandoned_trainings_are_kept() -> None:
    files = [ResumeFile(str(number)) for number in range(MAX_FILES + 3)]
    for file in files:
        file.save(PROGRESS)
    assert all(file.path.exists() for file in files)  # any of them may still be running
    abandoned = time.time() - SECONDS_TO_REST - 1
    for file in files[1:3]:
        os.utime(file.path, (abandoned, abandoned))
    files[-1].save(PROGRESS)
    assert [file.path.exists() for file in files] == [True, False, False, *[True] * MAX_FILES]
    for path in files[-1].path.parent.iterdir():
        os.utime(path, (abandoned, abandoned))
    files[-1].save(PROGRESS)
    assert sum(file.path.exists() for file in files) == MAX_FILES


def test_trainings_save_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0

    def write(*_: object) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.1)
        at_once -= 1

    monkeypatch.setattr(resume, "write_tensors", write)
    threads = [Thread(target=ResumeFile("mine").save, args=(PROGRESS,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_lock_held_elsewhere_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.1)
    file = ResumeFile("mine")
    file.save(PROGRESS)
    with FileLock(file.path.parent.with_suffix(".lock")):
        file.save(Progress([], {}))
    assert "(The file lock" in caplog.text
    assert_equal(file.load())


def test_continuing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ResumeFile("mine").save(PROGRESS)
    with caplog.at_level(logging.WARNING):
        ResumeFile("mine").load()
    assert "training continues after epoch 2" in caplog.text


def run_training(project: Path, after_first_epoch: str) -> "subprocess.CompletedProcess[str]":
    """Run the stage in its own process; run `after_first_epoch` once the first epoch is on disk."""
    script = f"""
import os, runpy, signal
from pathlib import Path
from facevae.train.resume import ResumeFile
from facevae.train.sharpening import Sharpening
save = ResumeFile.save
def save_and_more(file, progress):
    save(file, progress)
    {after_first_epoch}
ResumeFile.save = save_and_more
runpy.run_path("stages/train.py", run_name="__main__")
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "src", "DVC_ROOT": str(project)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def outputs(project: Path) -> dict[str, bytes]:
    paths = [project / name for name in ("models/vae.safetensors", "plots/history.csv", "metrics/train.json")]
    paths += (project / "plots/epochs").rglob("*.png")
    return {str(path.relative_to(project)): path.read_bytes() for path in paths}


def leftovers(project: Path) -> list[Path]:
    return [*project.rglob("*.partial"), *project.glob(".facevae/resume/*")]


def test_a_killed_training_continues_to_the_same_bytes(copy: Path) -> None:
    undisturbed = outputs(copy)
    assert run_training(copy, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL
    assert len(leftovers(copy)) == 1
    assert "training continues after epoch 1" in dvc(copy, "repro", "--force", "--single-item", "train")
    assert outputs(copy) == undisturbed
    assert leftovers(copy) == []


def test_a_killed_sharpening_continues_to_the_same_bytes(copy: Path) -> None:
    tree = yaml.safe_load((copy / "params.yaml").read_text())
    tree["sharpen"]["epochs"] = 3
    (copy / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert run_training(copy, "pass").returncode == 0
    undisturbed = outputs(copy)
    assert "plots/epochs/samples/5.png" in undisturbed
    assert run_training(copy, "if len(progress.rows) == 3: os.kill(os.getpid(), signal.SIGKILL)").returncode < 0
    in_an_epoch = 'if len(progress.rows) == 4: setattr(Sharpening, "take_step", lambda *_: os.kill(os.getpid(), 9))'
    for epoch in (3, 4):
        result = run_training(copy, in_an_epoch if epoch == 3 else "pass")
        assert f"training continues after epoch {epoch}" in result.stderr
    assert outputs(copy) == undisturbed
    assert leftovers(copy) == []


def test_an_edit_while_training_runs_is_refused(copy: Path) -> None:
    before = outputs(copy)
    result = run_training(copy, 'Path("src/facevae/model/vae.py").open("a").write("# edited")')
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: params.yaml, the data or the code changed while the stage")
    assert outputs(copy) == before
