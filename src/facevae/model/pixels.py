"""Turn prepared images into the tensors that networks take."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BATCH_SIZE = 50  # images; results depend on it by rounding only


def batches_of(images: NDArray[np.uint8], batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield images (N, height, width, channels) in order, as float32 (batch, channel, height, width) in [0, 1]."""
    for start in range(0, len(images), batch_size):
        yield to_unit_range(np.array(images[start : start + batch_size]), device)


def to_unit_range(images: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Turn prepared images (batch, height, width, channels) into float32 (batch, channel, height, width) in [0, 1].

    The result is channels_last, the order in which the pixels are stored.
    """
    return torch.as_tensor(images).to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
