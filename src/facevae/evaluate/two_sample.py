"""A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): can reconstructions be told from images?"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae.evaluate.judge import Classifier
from facevae.evaluate.judge_training import one_cycle
from facevae.model.pixels import to_unit_range
from facevae.train.optimizers import Adam

EPOCHS = 8
BATCH_SIZE = 32  # pairs
LEARNING_RATE = 0.003
MAX_PAIRS = 600  # of each split, which bounds the time

Pairs = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def two_sample_accuracy(train: Pairs, heldout: Pairs, device: torch.device, *, seed: int) -> float:
    """The accuracy of a new classifier, trained to tell images from their reconstructions, on held-out pairs.

    0.5: it cannot tell them apart; 1: it always can. The classifier has the judge's layers and nothing else in common
    with it. A batch holds each image beside its reconstruction, so the content of an image tells nothing.

    Parameters
    ----------
    train, heldout
        Images and their reconstructions, each uint8 (N, height, width, channels). At most `MAX_PAIRS` are used.
    device
        Where to compute.
    seed
        Determines the initial weights and the order of the pairs.
    """
    real, decoded = (images[:MAX_PAIRS] for images in train)
    torch.manual_seed(seed)
    classifier = Classifier(real.shape[1], real.shape[3], ("real",)).to(device).train()
    optimizer = Adam(classifier.parameters())
    num_batches = -(-len(real) // BATCH_SIZE)
    schedule = one_cycle(LEARNING_RATE, EPOCHS * num_batches)
    order = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for chosen in np.array_split(order.permutation(len(real)), num_batches):
            logits = _logits(classifier, real[chosen], decoded[chosen], device)
            optimizer.zero_grad()
            functional.softplus(-logits).mean().backward()
            learning_rate, beta1 = next(schedule)
            optimizer.step(learning_rate, beta1=beta1)
    return _accuracy(classifier.eval(), [images[:MAX_PAIRS] for images in heldout], device)


@torch.no_grad()
def _accuracy(classifier: Classifier, pairs: list[NDArray[np.uint8]], device: torch.device) -> float:
    """The share of images and reconstructions that are recognised; a logit of 0 counts half."""
    correct = []
    for start in range(0, len(pairs[0]), BATCH_SIZE):
        logits = _logits(classifier, *(images[start : start + BATCH_SIZE] for images in pairs), device)
        correct.append((1 + logits.sign()) / 2)
    return float(torch.cat(correct).double().mean())


def _logits(
    classifier: Classifier, real: NDArray[np.uint8], decoded: NDArray[np.uint8], device: torch.device
) -> Tensor:
    """The logits of images, and minus those of their reconstructions, (2 N,): positive where the classifier is right."""
    logits: Tensor = classifier(to_unit_range(np.concatenate([real, decoded]), device))[:, 0]
    return torch.cat([logits[: len(real)], -logits[len(real) :]])
