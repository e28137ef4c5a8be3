"""Two tasks at the same time: each on one thread, with what they return and raise."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import threadpool_info

from facevae.concurrency import seeded, side_by_side


def num_threads() -> set[int]:
    """Threads of PyTorch, BLAS and OpenMP in the calling thread."""
    return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_each_task_has_one_thread_and_the_caller_gets_its_own_back() -> None:
    before = num_threads()
    assert side_by_side(num_threads, lambda: side_by_side(num_threads, num_threads)) == ({1}, ({1}, {1}))
    assert 2 in before
    assert num_threads() == before
    with ThreadPoolExecutor(1) as pool:  # a new thread takes what PyTorch remembers
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("two_threads")
def test_tasks_may_have_more_threads_than_those_that_they_start() -> None:
    def nested() -> tuple[int, tuple[int, int], int]:
        own = torch.get_num_threads()
        return own, side_by_side(torch.get_num_threads, torch.get_num_threads), torch.get_num_threads()

    assert side_by_side(nested, nested, num_threads=2) == ((2, (1, 1), 2), (2, (1, 1), 2))


def test_the_tasks_run_at_the_same_time() -> None:
    both_are_there = threading.Barrier(2, timeout=60)
    assert sorted(side_by_side(both_are_there.wait, both_are_there.wait)) == [0, 1]


@pytest.mark.parametrize("swap", [False, True])
def test_an_error_of_either_task_is_raised(swap: bool) -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("on purpose")

    tasks: list[Callable[[], None]] = [fail, lambda: done.append(1)]
    with pytest.raises(ValueError, match="on purpose"):
        side_by_side(*(reversed(tasks) if swap else tasks))
    assert done == [1]  # the other task has ended


def test_seeded_draws_do_not_mix() -> None:
    def draw(seed: int) -> list[float]:
        with seeded(seed):
            first = float(torch.rand(1))
            time.sleep(0.1)  # in which the other thread would seed the generator anew, were it let in
            return [first, float(torch.rand(1))]

    alone = draw(1), draw(2)
    assert side_by_side(lambda: draw(1), lambda: draw(2)) == alone


def test_seeded_restores_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        torch.rand(3)
    assert torch.equal(torch.rand(2), expected)


def test_seeded_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a model's priors must not seed what its user draws on a GPU."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(1):
        pass
    assert seeds == []
