"""Decode raw images in parallel, in processes of this machine or on a Dask cluster.

To use a cluster, set the environment variable DASK_SCHEDULER_ADDRESS, as for Dask's own tools. Its workers need this
package, and the images under the same path.
"""

import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facevae.data.image_file import BadImageError, fit_image
from facevae.errors import UserError

if TYPE_CHECKING:
    from facevae.config.schema import DataParams  # takes each process a tenth of a second

DASK = "DASK_SCHEDULER_ADDRESS"
SECONDS_TO_CONNECT = 30
PROCESSES = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")

Chunk = tuple[NDArray[np.uint8], list[tuple[int, str]]]
Read = Callable[[int], Image.Image]
Buffer = Any  # an array of ctypes
Fit = Callable[[Image.Image], NDArray[np.uint8]]
Submit = Callable[[int, int], Callable[[], Chunk]]  # starts a chunk and returns a function that waits for it


def decode_in_order(read: Read, params: "DataParams", num_images: int, chunk_size: int) -> Iterator[tuple[int, Chunk]]:
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
    fit = partial(fit_image, image_size=params.image_size, channels=params.channels, crop=params.crop)
    shape = chunk_size, *params.image_shape
    processes = _dask_cluster(read, fit, shape) if has_cluster else _own_processes(read, fit, shape)
    with processes as (submit, num_pending):
        for start in range(0, num_images, chunk_size):
            pending.append((start, submit(start, min(start + chunk_size, num_images))))
            if len(pending) > num_pending:
                first, chunk = pending.popleft()
                yield first, chunk()
        for first, chunk in pending:
            yield first, chunk()


def decode(read: Read, fit: Fit, shape: tuple[int, ...], start: int, stop: int) -> Chunk:
    """The usable images of a chunk, and the position and reason of each bad one."""
    images = np.empty((stop - start, *shape[1:]), np.uint8)
    bad = decode_into(images, read, fit, start, stop)
    return images[: len(images) - len(bad)], bad


def decode_into(images: NDArray[np.uint8], read: Read, fit: Fit, start: int, stop: int) -> list[tuple[int, str]]:
    """Fill `images` from the front with the usable images of a chunk; return position and reason of each bad one."""
    bad: list[tuple[int, str]] = []
    for position in range(start, stop):
        try:
            images[position - start - len(bad)] = fit(read(position))
        except BadImageError as error:
            bad.append((position, str(error)))
    return bad


@contextmanager
def _own_processes(read: Read, fit: Fit, shape: tuple[int, ...]) -> Iterator[tuple[Submit, int]]:
    """New processes, no forks of this one. They put pixels into shared memory, because pipes would slow them down."""
    num_processes = os.cpu_count() or 1
    num_pending = 2 * num_processes
    try:
        memory = PROCESSES.RawArray("B", (num_pending + 1) * math.prod(shape))  # one more, which the caller is reading
    except OSError as error:
        error.filename = "memory shared with the decoding processes"  # a temporary file without a name
        raise
    chunks = np.frombuffer(memory, np.uint8).reshape(-1, *shape)
    turns = cycle(range(len(chunks)))

    def submit(start: int, stop: int) -> Callable[[], Chunk]:
        turn = next(turns)
        decoded = pool.submit(_decode_here, turn, start, stop)

        def wait() -> Chunk:
            bad = decoded.result()
            return chunks[turn, : stop - start - len(bad)], bad

        return wait

    PROCESSES.set_forkserver_preload([__name__])  # imported once for all of them
    try:
        work = read, fit, memory, shape
        with ProcessPoolExecutor(num_processes, PROCESSES, _start_process, work) as pool:
            with _without_main(), _without_interrupts():  # until each process has set its own handler
                for _ in range(num_processes):
                    pool.submit(int)  # starts a process
            yield submit, num_pending
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed, most likely because memory ran out: close other programs or use "
            "smaller images, then run this again"
        ) from error


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from importing the script that runs, of which they need nothing."""
    main = vars(sys.modules["__main__"])
    known: dict[str, object] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.update(dict.fromkeys(known))
    try:
        yield
    finally:
        main.update(known)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_work: tuple[Read, Fit, NDArray[np.uint8]] | None = None  # set in each process of the pool


def _start_process(read: Read, fit: Fit, memory: Buffer, shape: tuple[int, ...]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # die silently; the stage itself reports the interrupt
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _work = read, fit, np.frombuffer(memory, np.uint8).reshape(-1, *shape)
    Thread(target=_end_with_the_stage, daemon=True).start()


def _end_with_the_stage() -> None:
    """Exit when the stage is killed, instead of waiting for work forever."""
    if stage := multiprocessing.parent_process():
        stage.join()
        os._exit(1)


def _decode_here(turn: int, start: int, stop: int) -> list[tuple[int, str]]:
    assert _work is not None
    read, fit, chunks = _work
    return decode_into(chunks[turn], read, fit, start, stop)


@contextmanager
def _dask_cluster(read: Read, fit: Fit, shape: tuple[int, ...]) -> Iterator[tuple[Submit, int]]:
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
            yield lambda start, stop: pool.submit(decode, work, fit, shape, start, stop).result, 2 * len(num_threads)
        except KilledWorker as error:
            raise UserError(f"{DASK}: a worker of the cluster at {address} was killed repeatedly: {error}") from error
