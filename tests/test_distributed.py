"""Trainings in several processes, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import MUON, small_params
from torch import nn
from train_together import histories, history_from

from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.storage.tensors import read_tensors
from facevae.train.distributed import ALONE, Workers, share_batch_norm
from facevae.train.loop import Progress
from facevae.train.resume import ResumeHeader

SCRIPT = Path(__file__).with_name("train_together.py")
SLOW = {"train__epochs": 3, "train__learning_rate": 0.001}  # ten times faster, Adam amplifies rounding
CASES: dict[str, dict[str, Any]] = {
    "plain": SLOW,
    "all": {
        **SLOW,
        "train__likelihood": "gaussian",
        "train__average_decay": 0.9,
        "train__horizontal_flip": True,
        "train__clip_gradient_norm": 100.0,
        "train__micro_batch_size": 5,
        "train__num_importance_samples": 2,
        "model__normalization": "group",
    },
    "muon": {**SLOW, **MUON, "train__clip_gradient_norm": 100.0, "model__normalization": "group"},
    "fewer images than processes": {
        **SLOW,
        "train__likelihood": "gaussian",
        "train__batch_size": 2,
        "model__normalization": "group",
    },
}


def start_together(num_processes: int, cases: dict[str, Any], target: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*command, str(SCRIPT), json.dumps(cases), str(target)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by three processes: history.json, and for each case the progress after two epochs."""
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
def test_a_training_continues_with_another_number_of_processes(together: Path, name: str) -> None:
    found = json.loads((together / "history.json").read_text())[name]
    tensors, header = read_tensors(together / name, ResumeHeader, remedy="")
    *before, last = history_from(Progress(header.rows, tensors), CASES[name], ALONE)
    assert before == header.rows == found[:2]
    assert last == pytest.approx(found[2], rel=1e-4)


@pytest.mark.slow
def test_processes_with_different_fingerprints_are_refused(tmp_path: Path) -> None:
    process = start_together(2, {"differ": {}}, tmp_path / "history.json")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert (
        "error: 2 processes cannot train together: params, data, code, versions or processors of rank [1] differ"
        in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "torchrun"])
def test_all_processes_end_when_one_is_killed(tmp_path: Path, killed: str) -> None:
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
def test_shares_cover_the_whole(size: int) -> None:
    shares = [range(100)[Workers(rank, size).share(10, 17)] for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(10, 17))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_batch_normalisation_across_cpus_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match="model.normalization: 'batch' needs GPUs when several processes train"):
        share_batch_norm(model, torch.device("cpu"))
    share_batch_norm(model[:1], torch.device("cpu"))


def test_batch_normalisation_across_gpus_uses_torch() -> None:
    model = VAE(small_params(model__normalization="batch").model, 8, 3)
    weights = dict(model.state_dict())
    share_batch_norm(model, torch.device("cuda"))
    kinds = {type(module) for module in model.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
