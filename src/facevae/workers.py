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
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from facevae.errors import UserError
from facevae.hardware import set_up_device
from facevae.params import TrainParams

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
def joined_workers(params: TrainParams, fingerprint: str) -> Iterator[Workers]:
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
    distributed.init_process_group("nccl" if set_up_device(params).type == "cuda" else "gloo")
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


def share_statistics(model: nn.Module) -> None:
    """Have batch normalisation be over the images of all processes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                shared = SharedBatchNorm2d(child.num_features)
                shared.load_state_dict(child.state_dict())
                setattr(parent, name, shared.to(child.weight.device))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (arXiv 1502.03167) by the mean and variance over the images of all processes.

    PyTorch's SyncBatchNorm is for GPUs alone, and refuses a process that has no image.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Features (batch, channel, height, width), of the same shape again."""
        if not self.training:
            return super().forward(features)
        normalized, mean, variance, num_values = _Normalization.apply(features, self.weight, self.bias, self.eps)
        self._note(mean, variance * num_values / (num_values - 1))
        shared: Tensor = normalized
        return shared

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics and count the batch, as `nn.BatchNorm2d` does."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value, self.momentum or 0.0)


class _Normalization(torch.autograd.Function):
    """Normalises by the statistics of all processes, with one exchange on the way there and one on the way back."""

    @staticmethod
    def forward(
        context: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The normalised features; mean and variance (channel,) of all values, and how many there are of a channel."""
        num_channels = len(weight)
        own = weight.new_zeros(2 * num_channels + 1)
        if features.numel():
            values = features.float()
            own[:num_channels] = mean = values.mean((0, 2, 3))
            own[num_channels:-1] = (values - mean[:, None, None]).square().mean((0, 2, 3))
            own[-1] = features.numel() / num_channels
        gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, own)
        means, variances, counts = torch.stack(gathered).split([num_channels, num_channels, 1], 1)
        num_values = counts.sum()
        shares = counts / num_values
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)  # within the processes and between them
        context.save_for_backward(features, weight, mean, torch.rsqrt(variance + eps), num_values)
        context.mark_non_differentiable(mean, variance, num_values)
        if features.numel():
            normalized = functional.batch_norm(features, mean, variance, weight, bias, eps=eps)
        else:  # an output must not be the input itself
            normalized = features.clone()
        return normalized, mean, variance, num_values

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of features, weight and bias; of these two the own share, as of any weight (section 3)."""
        features, weight, mean, factor, num_values = context.saved_tensors
        gradient = gradients[0].float()
        centred = features.float() - mean[:, None, None]
        own = torch.stack([gradient.sum((0, 2, 3)), (gradient * centred).sum((0, 2, 3)) * factor])
        total = own.clone()
        distributed.all_reduce(total)
        of_sum, of_product = -weight * factor * total / num_values
        changed = torch.addcmul(of_sum[:, None, None], centred, (of_product * factor)[:, None, None])
        changed.addcmul_(gradient, (weight * factor)[:, None, None])
        return changed.to(features.dtype), own[1], own[0], None
