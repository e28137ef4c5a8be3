"""Train the attribute classifier."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from facevae.config.checks import warn_of_large_batch
from facevae.config.schema import ClassifierParams, Precision
from facevae.data.prepared import varied_attributes
from facevae.device import autocast
from facevae.errors import UserError
from facevae.evaluate.judge import Classifier
from facevae.model.pixels import to_unit_range
from facevae.train.optimizers import Adam


def train_classifier(
    images: NDArray[np.uint8],
    attributes: pd.DataFrame,
    params: ClassifierParams,
    precision: Precision,
    device: torch.device,
    *,
    horizontal_flip: bool,
    seed: int,
) -> Classifier:
    """Train on the cross-entropy of all attributes, with Adam and the 1-cycle schedule.

    Each image is blurred with probability 1/2. Blur keeps the classifier from relying on fine detail, which
    reconstructions lack.

    Parameters
    ----------
    images
        uint8 (N, height, width, channels).
    attributes
        Values 0 and 1, one row an image. An attribute that does not vary is left out; with none left, the network keeps
        its initial weights.
    horizontal_flip
        Mirror each image with probability 1/2. Use it only if a mirrored image keeps its attributes, unlike a digit.
    seed
        Determines the initial weights, the order of the images, and which are blurred and mirrored.

    Raises
    ------
    UserError
        The training exploded.
    """
    varied = varied_attributes(attributes)
    torch.manual_seed(seed)
    classifier = Classifier(images.shape[1], images.shape[3], tuple(varied.columns)).to(device).train()
    if varied.empty:
        return classifier.cpu().eval()
    labels = torch.from_numpy(varied.to_numpy(dtype=np.float32, copy=True)).to(device)
    warn_of_large_batch("classifier.batch_size", params.batch_size, len(images))
    num_batches = math.ceil(len(images) / params.batch_size)
    optimizer = Adam(classifier.parameters())
    schedule = one_cycle(params.learning_rate, params.epochs * num_batches)
    order = np.random.default_rng(seed)
    augmentation = torch.Generator().manual_seed(seed)
    with tqdm(total=params.epochs * len(images), desc="classifier", unit="image", disable=None) as bar:
        for _ in range(params.epochs):
            for chosen in np.array_split(order.permutation(len(images)), num_batches):
                batch = _augment(to_unit_range(images[chosen], device), augmentation, horizontal_flip)
                with autocast(precision, device):
                    logits = classifier(batch)
                optimizer.zero_grad()
                functional.binary_cross_entropy_with_logits(logits, labels[torch.from_numpy(chosen)]).backward()
                learning_rate, beta1 = next(schedule)
                optimizer.step(learning_rate, beta1=beta1)
                bar.update(len(chosen))
    if not all(torch.isfinite(tensor).all() for tensor in classifier.state_dict().values()):
        raise UserError(
            "the training of the classifier exploded. Lower classifier.learning_rate, or set train.precision to float32"
        )
    return classifier.cpu().eval()


def one_cycle(learning_rate: float, num_steps: int) -> Iterator[tuple[float, float]]:
    """Yield each step's learning rate and Adam's beta1: the rate rises for 30 % of the steps, then falls to almost 0.

    The 1-cycle policy (arXiv 1708.07120), with the cosines and constants of PyTorch's `OneCycleLR`.
    """
    peak, end = 0.3 * num_steps - 1, num_steps - 1
    for step in range(num_steps):
        if step <= peak:
            lowest, height = learning_rate / 25, 0.5 * (1 - math.cos(math.pi * step / peak))
        else:
            lowest, height = learning_rate / 250_000, 0.5 * (1 + math.cos(math.pi * (step - peak) / (end - peak)))
        yield lowest + (learning_rate - lowest) * height, 0.95 - 0.1 * height


def _augment(images: Tensor, generator: torch.Generator, horizontal_flip: bool) -> Tensor:
    """Blur, and mirror if asked to, images (batch, channel, height, width), each with probability 1/2."""
    size = images.shape[-1]
    halved = functional.interpolate(images, size=size // 2, mode="bilinear", antialias=True)
    blurred = functional.interpolate(halved, size=size, mode="bilinear")
    chances = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    is_blurred, is_mirrored = (chances < 0.5).to(images.device)  # each (batch, 1, 1, 1)
    images = torch.where(is_blurred, blurred, images)
    return torch.where(is_mirrored, images.flip(3), images) if horizontal_flip else images
