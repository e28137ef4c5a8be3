"""Two computations at the same time, and the random generators that they share."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")

_GLOBAL_GENERATORS = Lock()


def side_by_side(
    first: Callable[[], First], second: Callable[[], Second], *, num_threads: int = 1
) -> tuple[First, Second]:
    """The results of two tasks that run at the same time.

    Either task may call this function again. Neither may draw from the global random generators, except within
    `seeded`.

    Parameters
    ----------
    first, second
        The tasks. The calling thread runs the first.
    num_threads
        Threads of each task for PyTorch and OpenMP; BLAS has one. A single thread suits small tensors, for which more
        would cost more than they bring, and sums that would otherwise depend on the order in which threads end.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as pool:
            other = pool.submit(_with_threads, num_threads, second)
            return _with_threads(num_threads, first), other.result()
    finally:
        torch.set_num_threads(before)


def _with_threads(num_threads: int, task: Callable[[], First]) -> First:
    """The result of a task, for which the calling thread uses so many threads."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(num_threads)
    with threadpool_limits(num_threads, user_api="openmp"):  # unlike that of BLAS, it holds in the calling thread alone
        return task()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start the global generators from a seed, and restore the state of the one on the CPU in the end.

    New layers draw their weights from them, and dropout what it drops. Other threads wait until they may seed them.
    """
    with _GLOBAL_GENERATORS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
