"""The batches of an epoch: which images, how they are mirrored, their noise, and how they reach the device."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.config.schema import TrainParams
from facevae.model.pixels import to_unit_range
from facevae.train.distributed import ALONE, Workers

READ_AHEAD = 4  # parts of batches that are read from disk or memory while the device computes
RESIDENT_SHARE = 0.5  # of a GPU's free memory may be filled by images
UPLOAD = 1000  # images at a time


@dataclass(frozen=True)
class Batch:
    """This process's share of one batch.

    Attributes
    ----------
    parts
        What goes through the network at a time: images (batch, channel, height, width) and noise (batch, draws *
        latent_dim), where `train.num_importance_samples` is the number of draws.
    num_images
        Images in the whole batch, of all processes together.
    """

    parts: list[tuple[Tensor, Tensor]]
    num_images: int


class ImageReader:
    """Images (N, height, width, channels), read in any order.

    A GPU holds all of them if they fit into half of its free memory. Otherwise threads read ahead, so that the device
    need not wait for a disk: memory maps may be larger than memory.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self._images = images
        self._device = device
        self._resident = _upload(images, device) if _may_reside(images, device) else None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield float32 images (batch, channel, height, width) in [0, 1] for each array of indices."""
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
        """Pin the memory of what goes to a GPU, so that the copy runs while the processor goes on."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


@dataclass(frozen=True)
class Batches:
    """Makes the batches of any epoch. An epoch's randomness depends on `seed` and its number alone."""

    params: TrainParams
    latent_dim: int
    seed: int
    device: torch.device
    workers: Workers = ALONE

    def of_epoch(self, reader: ImageReader, epoch: int) -> Iterator[Batch]:
        """Yield all images in a random order, mirrored at random if the params say so.

        This seeds the global generator too, from which dropout draws.
        """
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed + self.workers.rank)
        order = np.random.default_rng(seed).permutation(len(reader))
        generator = torch.Generator(self.device).manual_seed(seed)
        return self._batches(reader, order, generator, mirror=self.params.horizontal_flip)

    def for_validation(self, reader: ImageReader) -> Iterator[Batch]:
        """Yield all images as they are and in their order, with the same noise every time."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return self._batches(reader, np.arange(len(reader)), generator, mirror=False)

    def _batches(
        self, reader: ImageReader, order: NDArray[np.int64], generator: torch.Generator, *, mirror: bool
    ) -> Iterator[Batch]:
        chosen = list(index_batches(order, self.params.batch_size))
        read = reader.read(indices[part] for indices in chosen for part in self._parts(len(indices)))
        num_noise = self.params.num_importance_samples * self.latent_dim
        for indices in chosen:
            size = len(indices)
            mirrored = torch.rand(size, generator=generator, device=self.device) < 0.5 if mirror else None
            noise = torch.randn(size, num_noise, generator=generator, device=self.device)
            parts = []
            for part in self._parts(size):
                images = next(read)
                if mirrored is not None:
                    images = torch.where(mirrored[part, None, None, None], images.flip(3), images)
                parts.append((images, noise[part]))
            yield Batch(parts, size)

    def _parts(self, num_images: int) -> list[slice]:
        """This process's share of each part of a batch."""
        return [self.workers.share(*bounds) for bounds in parts_of(num_images, self.params.micro_batch_size)]


def num_batches(num_images: int, batch_size: int) -> int:
    """Count the batches of an epoch: a single image left over joins the batch before it.

    Batch normalisation cannot normalise a single image's map of one pixel.
    """
    whole, rest = divmod(num_images, batch_size)
    return max(1, whole + (rest > 1))


def index_batches(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Split an order of the images into batches."""
    last = num_batches(len(order), batch_size) - 1
    for index in range(last + 1):
        start = index * batch_size
        yield order[start:] if index == last else order[start : start + batch_size]


def parts_of(num_images: int, micro_batch_size: int | None) -> list[tuple[int, int]]:
    """Split a batch into parts of nearly equal size that go through the network one by one: (start, stop) of each."""
    num_parts = 1 if micro_batch_size is None else -(-num_images // micro_batch_size)
    bounds = [num_images * index // num_parts for index in range(num_parts + 1)]
    return list(pairwise(bounds))


def _may_reside(images: NDArray[np.uint8], device: torch.device) -> bool:
    return device.type == "cuda" and images.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def _upload(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), UPLOAD):
        resident[start : start + UPLOAD] = torch.from_numpy(np.array(images[start : start + UPLOAD]))
    return resident
