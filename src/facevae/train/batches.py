"""Which images make up a batch, and how they come to the device that computes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.model.pixels import to_unit_range

READ_AHEAD = 4  # parts of batches that are read from disk or memory while the device computes
RESIDENT_SHARE = 0.5  # of a GPU's free memory may be filled by images
UPLOAD = 1000  # images at a time


def num_batches(num_images: int, batch_size: int) -> int:
    """How many batches an epoch has: a single image that is left over joins the batch before it.

    Alone it would have no variance over which batch normalisation could normalise a map of one pixel.
    """
    whole, rest = divmod(num_images, batch_size)
    return max(1, whole + (rest > 1))


def index_batches(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """The batches into which an order of the images falls."""
    last = num_batches(len(order), batch_size) - 1
    for index in range(last + 1):
        start = index * batch_size
        yield order[start:] if index == last else order[start : start + batch_size]


def parts_of(num_images: int, micro_batch_size: int | None) -> list[tuple[int, int]]:
    """The starts and stops of a batch's parts, of nearly equal size, which go through the network one by one."""
    num_parts = 1 if micro_batch_size is None else -(-num_images // micro_batch_size)
    bounds = [num_images * index // num_parts for index in range(num_parts + 1)]
    return list(pairwise(bounds))


class ImageReader:
    """Images (N, height, width, channels), read in any order.

    On a GPU they are gathered where they lie, if they take no more than half of its free memory. Otherwise threads
    read ahead, so that the device need not wait for a disk: memory maps may be larger than the memory.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self._images = images
        self._device = device
        self._resident = _upload(images, device) if _may_reside(images, device) else None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """For each array of indices float32 (batch, channel, height, width) in [0, 1]."""
        if self._resident is not None:
            for indices in parts:
                rows = self._pinned(torch.from_numpy(indices)).to(self._device, non_blocking=True)
                yield to_unit_range(self._resident[rows], self._device)
            return
        pending: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for indices in parts:
                pending.append(pool.submit(self._gather, indices))
                if len(pending) == READ_AHEAD:
                    yield to_unit_range(pending.popleft().result(), self._device)
            while pending:
                yield to_unit_range(pending.popleft().result(), self._device)

    def _gather(self, indices: NDArray[np.int64]) -> Tensor:
        return self._pinned(torch.from_numpy(self._images[indices]))

    def _pinned(self, tensor: Tensor) -> Tensor:
        """The tensor where a GPU can fetch it while the processor goes on, if it is bound for one."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def _may_reside(images: NDArray[np.uint8], device: torch.device) -> bool:
    return device.type == "cuda" and images.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def _upload(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), UPLOAD):
        resident[start : start + UPLOAD] = torch.from_numpy(np.array(images[start : start + UPLOAD]))
    return resident
