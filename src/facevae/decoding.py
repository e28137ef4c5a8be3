"""Raw images decoded by many processes: those of this machine, or the workers of a Dask cluster.

Both are executors of concurrent.futures. A cluster is named as Dask's own tools name it, by the address in the
environment variable DASK_SCHEDULER_ADDRESS; its workers need this package, and the images under the same path.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from threading import Thread

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.errors import UserError
from facevae.images import BadImageError, fit_image
from facevae.params import DataParams

DASK = "DASK_SCHEDULER_ADDRESS"
SECONDS_TO_CONNECT = 30

Chunk = tuple[NDArray[np.uint8], list[tuple[int, str]]]
Read = Callable[[int], Image.Image]
Submit = Callable[[int, int], "Future[Chunk]"]


def decode_in_order(read: Read, params: DataParams, num_images: int, chunk_size: int) -> Iterator[tuple[int, Chunk]]:
    """Chunks of usable images (N, height, width, channels) in order, a bounded number of them under way.

    Each comes with its start and with the position and reason of each of its images that cannot be used.

    Raises
    ------
    UserError
        A process that decodes was killed, or the Dask cluster cannot be reached.
    """
    pending: deque[tuple[int, Future[Chunk]]] = deque()
    processes = _dask_cluster if os.environ.get(DASK) else _own_processes
    with processes(read, params) as (submit, num_processes):
        for start in range(0, num_images, chunk_size):
            pending.append((start, submit(start, min(start + chunk_size, num_images))))
            if len(pending) > 2 * num_processes:
                first, chunk = pending.popleft()
                yield first, chunk.result()
        for first, chunk in pending:
            yield first, chunk.result()


def decode(read: Read, params: DataParams, start: int, stop: int) -> Chunk:
    """The usable images of a chunk, and the position and reason of each of the others."""
    images = np.empty((stop - start, params.image_size, params.image_size, params.channels), np.uint8)
    bad: list[tuple[int, str]] = []
    for position in range(start, stop):
        try:
            image = read(position)
            images[position - start - len(bad)] = fit_image(image, params.image_size, params.channels, params.crop)
        except BadImageError as error:
            bad.append((position, str(error)))
    return images[: len(images) - len(bad)], bad


@contextmanager
def _own_processes(read: Read, params: DataParams) -> Iterator[tuple[Submit, int]]:
    try:
        with ProcessPoolExecutor(os.cpu_count(), initializer=_start_process, initargs=(read, params)) as pool:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until each process has its own way with it
            pool.submit(int)  # the first task starts all processes
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            yield lambda start, stop: pool.submit(_decode_here, start, stop), os.cpu_count() or 1
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads images was killed, most likely since memory ran out: close other programs, or make "
            "the images smaller, and run this again"
        ) from error


_work: tuple[Read, DataParams] | None = None  # what a process of the pool decodes, handed over once at its start


def _start_process(read: Read, params: DataParams) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a word; the stage itself tells of the interrupt
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _work = read, params
    Thread(target=_end_with_the_stage, daemon=True).start()


def _end_with_the_stage() -> None:
    """A process of the pool would wait for work for ever where the stage has been killed."""
    if stage := multiprocessing.parent_process():
        stage.join()
        os._exit(1)


def _decode_here(start: int, stop: int) -> Chunk:
    assert _work is not None
    return decode(*_work, start, stop)


@contextmanager
def _dask_cluster(read: Read, params: DataParams) -> Iterator[tuple[Submit, int]]:
    address = os.environ[DASK]
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError(f"{DASK} is {address}, but Dask is not installed: pip install -e .[dask]") from None
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise UserError(f"{DASK}: no Dask scheduler answers at {address} ({error}): start one, or unset it") from error
    with client:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
        num_threads = client.nthreads().values()
        if max(num_threads, default=0) != 1:  # Pillow's limits are warnings, whose filters threads share
            raise UserError(
                f"{DASK}: the cluster at {address} has workers with {', '.join(map(str, num_threads)) or 'no'} "
                "threads: start some with `dask worker --nthreads 1`"
            )
        work = client.scatter(read, hash=False, broadcast=True)  # once for each worker
        pool = client.get_executor(pure=False)
        try:
            yield lambda start, stop: pool.submit(decode, work, params, start, stop), len(num_threads)
        except KilledWorker as error:
            raise UserError(
                f"{DASK}: a worker of the cluster at {address} was killed again and again: {error}"
            ) from error
