"""Two computations at the same time, and the random generator that they share."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")

_GLOBAL_GENERATOR = Lock()


def side_by_side(
    first: Callable[[], First], second: Callable[[], Second], *, num_threads: int = 1
) -> tuple[First, Second]:
    """The results of two tasks that run at the same time.

    Either task may call this function again. Neither may draw from the global random generators, except within
    `seeded`. An error is raised when both tasks have ended; if both fail, it is the first task's.

    Parameters
    ----------
    first, second
        The tasks. The calling thread runs the first.
    num_threads
        Threads of each task for PyTorch and OpenMP; BLAS has one. On small tensors, more threads than one cost more
        than they bring. And some sums, such as those of k-means, depend on the order in which threads end.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as pool:
            other = pool.submit(_with_threads, num_threads, second)
            return _with_threads(num_threads, first), other.result()
    finally:
        torch.set_num_threads(before)


def _with_threads(num_threads: int, task: Callable[[], First]) -> First:
    """The result of a task, for which the calling thread uses `num_threads` threads."""
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # or a new thread takes the number that any thread set last, when it first computes
    torch.set_num_threads(num_threads)
    with threadpool_limits(num_threads, user_api="openmp"):  # unlike that of BLAS, it holds in the calling thread alone
        return task()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start the global generator of the CPU from a seed, and restore its state at the end.

    New layers draw their weights from it, and dropout what it drops. Other threads wait until they may seed it, so
    whoever holds it must neither seed it again nor wait for such a thread.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
