"""The moving average of weights."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float, step: int, skip: Tensor) -> None:
    """Move averaged weights towards the current ones (Polyak and Juditsky 1992), by more in the first steps.

    A skipped step leaves them as they were.
    """
    share = torch.where(skip, 0.0, 1 - min(decay, (1 + step) / (10 + step)))
    for mean, weight in zip(average.state_dict().values(), current.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(weight, share)
        else:  # the number of batches that batch normalisation has seen
            mean.copy_(weight)
