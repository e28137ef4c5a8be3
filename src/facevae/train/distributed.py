"""Several processes that train one model together, each a part of every batch, as torchrun starts them.

Losses, gradients and the statistics of batch normalisation are those of the whole batch, so that one process and many
come to the same weights, but for rounding.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from facevae.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The processes of one training; by default there is this one alone.

    Attributes
    ----------
    rank
        Which one of them this process is, from 0.
    size
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and tracks."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> slice:
        """What this process computes of consecutive things; the shares differ by one at most, and may be empty."""
        bounds = (start + (stop - start) * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(*bounds)

    def total(self, values: Tensor) -> Tensor:
        """The sum of the tensors that all processes give."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def from_leader(self, value: T) -> T:
        """What the first process gives, for all."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes."""
        return module if self.size == 1 else DistributedDataParallel(module)


ALONE = Workers()


@contextmanager
def joined_workers(device: torch.device, fingerprint: str) -> Iterator[Workers]:
    """Join the processes that torchrun has started; where it has not, there is this one alone.

    Raises
    ------
    UserError
        A process is about to train something else: its fingerprint is not this one.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    workers = Workers(distributed.get_rank(), distributed.get_world_size())
    _refuse_others(fingerprint, workers)
    yield workers
    distributed.destroy_process_group()  # not after an error: it would wait for the others, which torchrun ends


def _refuse_others(fingerprint: str, workers: Workers) -> None:
    fingerprints: list[Any] = [None] * workers.size
    distributed.all_gather_object(fingerprints, fingerprint)
    if others := [rank for rank, other in enumerate(fingerprints) if other != fingerprints[0]]:
        raise UserError(
            f"of {workers.size} processes that were to train together, those of rank {others} have other params, data, "
            "code, versions or processors than the first: give all machines the same"
        )


def _end_with(parent: int) -> None:
    """A process would train on where torchrun has been killed and cannot end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Make batch normalisation use the statistics of all processes' images, by PyTorch's SyncBatchNorm.

    Raises
    ------
    UserError
        The model has batch normalisation and the device is a CPU, which SyncBatchNorm does not support.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return
    if device.type != "cuda":
        raise UserError(
            "model.normalization: 'batch' needs GPUs when several processes train together: train in one process "
            "(train.launcher: python), or set model.normalization to group or none"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
