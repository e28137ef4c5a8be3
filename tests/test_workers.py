"""Trainings by several processes, which torchrun starts."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed, nn
from train_together import histories, history_from

from facevae.resume import Header
from facevae.tensor_file import read_tensors
from facevae.training import Progress
from facevae.workers import ALONE, SharedBatchNorm2d, Workers, share_statistics

SCRIPT = Path(__file__).with_name("train_together.py")
CASES: dict[str, dict[str, Any]] = {
    "plain": {"train__epochs": 3},
    "all": {
        "train__epochs": 3,
        "train__likelihood": "gaussian",
        "train__average_decay": 0.9,
        "train__horizontal_flip": True,
        "train__clip_gradient_norm": 100.0,
        "train__micro_batch_size": 5,
        "model__normalization": "batch",
    },
    "fewer images than processes": {
        "train__epochs": 3,
        "train__likelihood": "gaussian",
        "train__batch_size": 2,
        "model__normalization": "group",
    },
}


def start_together(num_processes: int, cases: dict[str, Any], target: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(SCRIPT), json.dumps(cases), str(target)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three processes leave: history.json, and under the name of each case where its training was stopped."""
    folder = tmp_path_factory.mktemp("together")
    process = start_together(3, CASES, folder / "history.json")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder


def test_many_processes_have_the_losses_of_one(together: Path) -> None:
    found = json.loads((together / "history.json").read_text())
    for name, rows in histories(CASES, ALONE).items():
        for row, other in zip(rows, found[name], strict=True):
            assert other == pytest.approx(row, rel=1e-4), name


@pytest.mark.parametrize("name", CASES)
def test_a_training_goes_on_with_another_number_of_processes(together: Path, name: str) -> None:
    found = json.loads((together / "history.json").read_text())[name]
    tensors, header = read_tensors(together / name, Header, remedy="")
    *before, last = history_from(Progress(header.rows, tensors), CASES[name], ALONE)
    assert before == header.rows == found[:2]
    assert last == pytest.approx(found[2], rel=1e-4)


def test_processes_that_would_train_something_else_are_refused(tmp_path: Path) -> None:
    process = start_together(2, {"differ": {}}, tmp_path / "history.json")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: of 2 processes that were to train together, those of rank [1] have other params, data, code" in said


@pytest.mark.parametrize("killed", ["worker", "torchrun"])
def test_where_one_process_is_killed_all_end(tmp_path: Path, killed: str) -> None:
    process = start_together(2, {"long": {"train__epochs": 100_000}}, tmp_path / "history.json")
    deadline = time.monotonic() + 120
    while not (tmp_path / "long").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    os.kill(workers[1].pid if killed == "worker" else process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not (tmp_path / "history.json").exists()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_shares_make_up_the_whole(size: int) -> None:
    shares = [range(100)[Workers(rank, size).share(10, 17)] for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(10, 17))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_statistics_are_those_of_torch_where_all_images_are_here() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(5, 3, 8, 8, requires_grad=True)
    for weight in model[1].parameters():
        nn.init.normal_(weight)
    shared = copy.deepcopy(model)
    share_statistics(shared)
    assert isinstance(shared[1], SharedBatchNorm2d)
    expected, found = model(images), shared(images)
    torch.testing.assert_close(found, expected)
    for own, reference in zip(
        torch.autograd.grad(found.pow(3).sum(), [images, *shared[1].parameters()]),
        torch.autograd.grad(expected.pow(3).sum(), [images, *model[1].parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(own, reference, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(dict(shared[1].named_buffers()), dict(model[1].named_buffers()))
