"""Decoding in other processes: on a Dask cluster, and on this machine through shared memory."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, free_port, small_params
from PIL import Image
from readers import read_grey

from facevae.data import decode_pool, preparation
from facevae.data.decode_pool import DASK, decode_in_order
from facevae.data.preparation import prepare
from facevae.data.sources.dispatch import open_source
from facevae.errors import UserError

PARAMS = small_params(data__num_images=60)


@contextmanager
def cluster(folder: Path, *num_threads: int) -> Iterator[str]:
    """Start a Dask cluster with one worker for each number of threads; yields its address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    commands = [["dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]]
    commands += [["dask_worker", address, "--nthreads", str(count), "--no-dashboard"] for count in num_threads]
    with ExitStack() as stack:
        for name, *options in commands:
            command = [sys.executable, "-m", f"distributed.cli.{name}", *options]
            process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield address


@pytest.fixture(autouse=True)
def _small_chunks_and_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "CHUNK_BYTES", 7 * 8 * 8 * 3)
    monkeypatch.setattr(decode_pool, "SECONDS_TO_CONNECT", 180)  # generous, because other tests run at the same time


@pytest.mark.slow
def test_a_dask_cluster_prepares_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    avatars = open_source(PARAMS.data, PARAMS.seed)
    prepare(avatars, PARAMS.data, PARAMS.seed, tmp_path / "here")
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    with cluster(tmp_path, 1, 1) as address:
        monkeypatch.setenv(DASK, address)
        prepare(avatars, PARAMS.data, PARAMS.seed, tmp_path / "cluster")
        data = PARAMS.data.model_copy(update={"source": "folder", "root": str(tmp_path / "images"), "num_images": None})
        with pytest.raises(UserError, match=r"1 of 3 images .*\n  1.png: it is empty or not an image"):
            prepare(open_source(data, 0), data, 0, tmp_path / "bad")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "cluster").iterdir())
    for name in names:
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_a_chunk_is_unchanged_while_the_next_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    num_images = 10  # uses each chunk of shared memory twice
    decoded = decode_in_order(read_grey, PARAMS.data, num_images, chunk_size=1)
    for position, (start, (images, bad)) in enumerate(decoded):
        time.sleep(0.1)  # until all pending chunks are decoded
        assert (start, bad) == (position, [])
        assert (images == position).all()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # of Linux and of macOS
def test_processes_are_no_forks_of_the_stage(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def refuse() -> int:
        raise AssertionError("a fork")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(decode_pool, "PROCESSES", multiprocessing.get_context(method))
    source = open_source(PARAMS.data, PARAMS.seed)
    decoded = [chunk for _, (chunk, _) in decode_in_order(source.read, PARAMS.data, 9, chunk_size=4)]
    expected = [np.asarray(source.read(position)) for position in (8,)]
    assert [len(chunk) for chunk in decoded] == [4, 4, 1]
    assert np.array_equal(decoded[-1], expected)


def test_processes_import_neither_the_script_nor_heavy_libraries() -> None:
    """They start anew, so that each import costs time."""
    code = "import facevae.data.decode_pool, facevae.data.sources.folder, sys; print(*sys.modules)"
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"))
    imported = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()
    assert {"numpy", "PIL.Image"} <= set(imported)
    assert not {"pandas", "pydantic", "torch", "dicebear", "matplotlib", "yaml"} & set(imported)


def test_dask_workers_with_several_threads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(tmp_path, 2) as address:
        monkeypatch.setenv(DASK, address)
        with pytest.raises(UserError, match="has workers with 2 threads.* `dask worker --nthreads 1`"):
            prepare(open_source(PARAMS.data, PARAMS.seed), PARAMS.data, PARAMS.seed, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_a_dask_cluster_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "SECONDS_TO_CONNECT", 0.5)
    monkeypatch.setenv(DASK, f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Dask scheduler answers at tcp://127.0.0.1:"):
        prepare(open_source(PARAMS.data, PARAMS.seed), PARAMS.data, PARAMS.seed, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
