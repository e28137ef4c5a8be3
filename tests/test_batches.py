import threading

import numpy as np
import pytest
import torch
from conftest import disc_images
from numpy.typing import NDArray

from facevae.model.pixels import to_unit_range
from facevae.train import batches
from facevae.train.batches import ImageReader, index_batches, num_batches, parts_of

IMAGES = disc_images(20)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"), [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (8, 4, [4, 4])]
)
def test_a_single_last_image_joins_the_batch_before(num_images: int, batch_size: int, sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(num_images)
    found = list(index_batches(order, batch_size))
    assert [len(batch) for batch in found] == sizes
    assert num_batches(num_images, batch_size) == len(sizes)
    assert np.array_equal(np.concatenate(found), order)


@pytest.mark.parametrize(
    ("num_images", "micro_batch_size", "parts"),
    [(7, None, [(0, 7)]), (7, 7, [(0, 7)]), (7, 3, [(0, 2), (2, 4), (4, 7)]), (2, 8, [(0, 2)])],
)
def test_parts_are_at_most_a_micro_batch(
    num_images: int, micro_batch_size: int | None, parts: list[tuple[int, int]]
) -> None:
    assert parts_of(num_images, micro_batch_size) == parts


@pytest.mark.parametrize("resident", [False, True])
def test_images_are_read_in_the_requested_order(monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    monkeypatch.setattr(batches, "_may_reside", lambda *_: resident)
    monkeypatch.setattr(batches, "UPLOAD", 7)
    order = np.random.default_rng(0).permutation(20)
    reader = ImageReader(IMAGES, CPU)
    read = list(reader.read(np.split(order, [3, 3, 10])))
    assert [len(images) for images in read] == [3, 0, 7, 10]
    assert torch.equal(torch.cat(read), to_unit_range(IMAGES[order], CPU))
    assert len(reader) == 20


def test_batches_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Semaphore(0), threading.Event()
    gather = ImageReader._gather

    def slowly(reader: ImageReader, indices: NDArray[np.int64]) -> torch.Tensor:
        started.release()
        assert go_on.wait(10)
        return gather(reader, indices)

    monkeypatch.setattr(ImageReader, "_gather", slowly)
    read = ImageReader(IMAGES, CPU).read(np.split(np.arange(20), 10))
    first = threading.Thread(target=next, args=(read,))
    first.start()
    assert all(started.acquire(timeout=10) for _ in range(batches.READ_AHEAD))
    go_on.set()
    first.join()
    assert len(list(read)) == 9
