"""A second judge for quality.py, of another architecture, training and seed than the pipeline's classifier.

It has residual blocks with group normalisation, average pooling and SiLU. It never sees a blurred image in training, so
it notices blur, to which the pipeline's classifier is trained to be blind.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from facevae.data.prepared import PreparedSet
from facevae.errors import UserError
from facevae.evaluate.judge_training import one_cycle
from facevae.model.pixels import batches_of, to_unit_range
from facevae.storage.tensors import build_module, read_tensors, write_tensors
from facevae.train.optimizers import Adam

WIDTHS = (16, 32, 64, 64)
EPOCHS = 6
BATCH_SIZE = 64
LEARNING_RATE = 0.004
SEED = 7


class SecondJudgeHeader(BaseModel):
    """What a second judge was trained on."""

    num_attributes: int
    data_digest: str


class Block(nn.Module):
    """A convolution beside a projection, then half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.normalization = nn.GroupNorm(8, out_channels)
        self.projection = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        change = functional.silu(self.normalization(self.convolution(maps)))
        return functional.avg_pool2d(change + self.projection(maps), 2)


class SecondJudge(nn.Module):
    """Images (batch, 3, height, width) in [0, 1] to one logit per attribute."""

    def __init__(self, num_attributes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(*widths) for widths in pairwise((3, *WIDTHS))))
        self.logits = nn.Linear(WIDTHS[-1], num_attributes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.maps(images))
        return logits

    def maps(self, images: Tensor) -> Tensor:
        """Means over the last feature maps, (batch, num_features)."""
        means: Tensor = self.blocks(images).mean((2, 3))
        return means

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Features of uint8 images (N, height, width, 3), (N, num_features)."""
        return torch.cat([self.maps(batch) for batch in batches_of(images, 100, torch.device("cpu"))])


def second_judge(path: Path, prepared: PreparedSet) -> SecondJudge:
    """The second judge of a prepared set, trained if its file is missing."""
    if not path.exists():
        judge = train_second_judge(prepared)
        header = SecondJudgeHeader(num_attributes=judge.logits.out_features, data_digest=prepared.digest)
        write_tensors(path, judge.state_dict(), header)
    tensors, header = read_tensors(path, SecondJudgeHeader, remedy="run this again")
    if header.data_digest != prepared.digest:
        raise UserError(f"{path} was trained on other images: remove it and run this again")
    return build_module(path, lambda: SecondJudge(header.num_attributes), tensors)


def train_second_judge(prepared: PreparedSet) -> SecondJudge:
    """Train on all attributes of the training images, mirrored at random."""
    images = prepared.images("train")
    labels = torch.from_numpy(prepared.attributes("train").to_numpy(dtype=np.float32, copy=True))
    torch.manual_seed(SEED)
    judge = SecondJudge(labels.shape[1])
    optimizer, generator = Adam(judge.parameters()), np.random.default_rng(SEED)
    num_batches = len(images) // BATCH_SIZE
    schedule = one_cycle(LEARNING_RATE, EPOCHS * num_batches)
    for _ in range(EPOCHS):
        for chosen in np.array_split(generator.permutation(len(images)), num_batches):
            batch = to_unit_range(images[chosen], torch.device("cpu"))
            mirrored = torch.from_numpy(generator.random(len(chosen)) < 0.5)[:, None, None, None]
            logits = judge(torch.where(mirrored, batch.flip(3), batch))
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(logits, labels[torch.from_numpy(chosen)]).backward()
            learning_rate, beta1 = next(schedule)
            optimizer.step(learning_rate, beta1=beta1)
    return judge.eval()
