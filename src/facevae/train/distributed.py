"""Several processes, started by torchrun, that train one model together. Each takes a share of every batch.

Losses, gradients and the statistics of batch normalisation cover the whole batch. So one process and many reach the
same weights, up to rounding.
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
    """The processes of one training; by default just this one.

    Attributes
    ----------
    rank
        The number of this process, from 0.
    size
        The number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and tracks."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> slice:
        """This process's share of the range from start to stop. Shares differ by one at most and may be empty."""
        bounds = (start + (stop - start) * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(*bounds)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def from_leader(self, value: T) -> T:
        """The first process's `value`, on all processes."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the processes."""
        return module if self.size == 1 else DistributedDataParallel(module)


ALONE = Workers()


@contextmanager
def joined_workers(device: torch.device, fingerprint: str) -> Iterator[Workers]:
    """Join the processes that torchrun started. Without torchrun there is only this one.

    Raises
    ------
    UserError
        Another process has a different fingerprint: it is about to train something else.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    workers = Workers(distributed.get_rank(), distributed.get_world_size())
    _refuse_others(fingerprint, workers)
    yield workers
    distributed.destroy_process_group()  # not after an error: this waits for the others, and torchrun ends them


def _refuse_others(fingerprint: str, workers: Workers) -> None:
    fingerprints: list[Any] = [None] * workers.size
    distributed.all_gather_object(fingerprints, fingerprint)
    if others := [rank for rank, other in enumerate(fingerprints) if other != fingerprints[0]]:
        raise UserError(
            f"{workers.size} processes cannot train together: params, data, code, versions or processors of rank "
            f"{others} differ from those of rank 0. Make them the same on all machines."
        )


def _end_with(parent: int) -> None:
    """Exit when torchrun dies: a killed torchrun cannot end its processes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let batch normalisation use the statistics of all processes' images, with PyTorch's SyncBatchNorm.

    Raises
    ------
    UserError
        The model has batch normalisation and the device is a CPU, which SyncBatchNorm does not support.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return
    if device.type != "cuda":
        raise UserError(
            "model.normalization: 'batch' needs GPUs when several processes train together. Train in one process "
            "(train.launcher: python), or set model.normalization to group or none."
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
