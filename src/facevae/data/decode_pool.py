"""Decode raw images in parallel, in processes of this machine or on a Dask cluster.

To use a cluster, set the environment variable DASK_SCHEDULER_ADDRESS, as for Dask's own tools. Its workers need this
package, and the images under the same path.
"""

import math
import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import cycle
from threading import Thread

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.config.schema import DataParams
from facevae.data.image_file import BadImageError, fit_image
from facevae.errors import UserError

DASK = "DASK_SCHEDULER_ADDRESS"
SECONDS_TO_CONNECT = 30

Chunk = tuple[NDArray[np.uint8], list[tuple[int, str]]]
Read = Callable[[int], Image.Image]
Submit = Callable[[int, int], Callable[[], Chunk]]  # starts a chunk and returns a function that waits for it


def decode_in_order(read: Read, params: DataParams, num_images: int, chunk_size: int) -> Iterator[tuple[int, Chunk]]:
    """Decode images in chunks, in order, with a bounded number of chunks in memory.

    Yields
    ------
    tuple
        The position of the chunk's first image; then the chunk: its usable images (N, height, width, channels), and
        the position and reason of each bad one. The images are valid until the next chunk is requested.

    Raises
    ------
    UserError
        A decoding process was killed, or the Dask cluster cannot be reached.
    """
    pending: deque[tuple[int, Callable[[], Chunk]]] = deque()
    has_cluster = bool(os.environ.get(DASK))
    processes = _dask_cluster(read, params) if has_cluster else _own_processes(read, params, chunk_size)
    with processes as (submit, num_pending):
        for start in range(0, num_images, chunk_size):
            pending.append((start, submit(start, min(start + chunk_size, num_images))))
            if len(pending) > num_pending:
                first, chunk = pending.popleft()
                yield first, chunk()
        for first, chunk in pending:
            yield first, chunk()


def decode(read: Read, params: DataParams, start: int, stop: int) -> Chunk:
    """The usable images of a chunk, and the position and reason of each bad one."""
    images = np.empty((stop - start, *params.image_shape), np.uint8)
    bad = decode_into(images, read, params, start, stop)
    return images[: len(images) - len(bad)], bad


def decode_into(
    images: NDArray[np.uint8], read: Read, params: DataParams, start: int, stop: int
) -> list[tuple[int, str]]:
    """Fill `images` from the front with the usable images of a chunk; return position and reason of each bad one."""
    bad: list[tuple[int, str]] = []
    for position in range(start, stop):
        try:
            image = read(position)
            images[position - start - len(bad)] = fit_image(image, params.image_size, params.channels, params.crop)
        except BadImageError as error:
            bad.append((position, str(error)))
    return bad


@contextmanager
def _own_processes(read: Read, params: DataParams, chunk_size: int) -> Iterator[tuple[Submit, int]]:
    """Forks of this process. They put pixels into shared memory, because pipes would slow everything down."""
    num_pending = 2 * (os.cpu_count() or 1)
    shape = num_pending + 1, chunk_size, *params.image_shape  # one more for the chunk that the caller is reading
    chunks = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
    turns = cycle(range(len(chunks)))

    def submit(start: int, stop: int) -> Callable[[], Chunk]:
        turn = next(turns)
        decoded = pool.submit(_decode_here, turn, start, stop)

        def wait() -> Chunk:
            bad = decoded.result()
            return chunks[turn, : stop - start - len(bad)], bad

        return wait

    try:
        fork, work = multiprocessing.get_context("fork"), (read, params, chunks)
        with ProcessPoolExecutor(os.cpu_count(), fork, _start_process, work) as pool:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until each process has set its own handler
            pool.submit(int)  # the first task starts all processes
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            yield submit, num_pending
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed, most likely because memory ran out: close other programs or use "
            "smaller images, then run this again"
        ) from error


_work: tuple[Read, DataParams, NDArray[np.uint8]] | None = None  # set in each process of the pool


def _start_process(read: Read, params: DataParams, chunks: NDArray[np.uint8]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # die silently; the stage itself reports the interrupt
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _work = read, params, chunks
    Thread(target=_end_with_the_stage, daemon=True).start()


def _end_with_the_stage() -> None:
    """Exit when the stage is killed, instead of waiting for work forever."""
    if stage := multiprocessing.parent_process():
        stage.join()
        os._exit(1)


def _decode_here(turn: int, start: int, stop: int) -> list[tuple[int, str]]:
    assert _work is not None
    read, params, chunks = _work
    return decode_into(chunks[turn], read, params, start, stop)


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
        if max(num_threads, default=0) != 1:  # read_image changes warning filters, which threads share
            raise UserError(
                f"{DASK}: the cluster at {address} has workers with {', '.join(map(str, num_threads)) or 'no'} "
                "threads: start some with `dask worker --nthreads 1`"
            )
        work = client.scatter(read, hash=False, broadcast=True)  # once for each worker
        pool = client.get_executor(pure=False)
        try:
            yield lambda start, stop: pool.submit(decode, work, params, start, stop).result, 2 * len(num_threads)
        except KilledWorker as error:
            raise UserError(f"{DASK}: a worker of the cluster at {address} was killed repeatedly: {error}") from error
