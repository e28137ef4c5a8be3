"""A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): are reconstructions told from images?"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facevae.concurrency import seeded
from facevae.evaluate.judge import Classifier
from facevae.evaluate.judge_training import one_cycle
from facevae.model.inference import decode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE
from facevae.train.optimizers import Adam

NUM_STEPS = 120
BATCH_SIZE = 32  # pairs
LEARNING_RATE = 0.003
MAX_PAIRS = 600  # of each split, which bounds the time

Pairs = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def reconstructed_pairs(
    model: VAE, train: tuple[NDArray[np.uint8], Tensor], heldout: tuple[NDArray[np.uint8], Tensor], *, batch_size: int
) -> tuple[Pairs, Pairs]:
    """Images of two splits with their reconstructions, at most `MAX_PAIRS` of each.

    A split is images (N, height, width, channels) and the means of their posteriors (N, latent_dim). If both are the
    same, its halves take their places.
    """
    decoded = [
        (images[:MAX_PAIRS], decode_all(model, means[:MAX_PAIRS], batch_size)) for images, means in (train, heldout)
    ]
    if train[0] is heldout[0]:
        images, reconstructions = decoded[0]
        half = len(images) // 2
        decoded = [(images[:half], reconstructions[:half]), (images[half:], reconstructions[half:])]
    return decoded[0], decoded[1]


def two_sample_accuracy(train: Pairs, heldout: Pairs, device: torch.device, *, seed: int) -> float:
    """The accuracy of a new classifier, trained to tell images from their reconstructions, on held-out pairs.

    0.5: it cannot tell them apart; 1: it always can. The classifier has the judge's layers and nothing else in common
    with it. A batch holds each image beside its reconstruction, so the content of an image tells nothing.

    Parameters
    ----------
    train, heldout
        Images and their reconstructions, each uint8 (N, height, width, channels).
    device
        Where to compute.
    seed
        Determines the initial weights and the pairs of each step.
    """
    real, decoded = train
    with seeded(seed):
        torch.cuda.manual_seed_all(seed)  # for dropout on a GPU
        classifier = Classifier(real.shape[1], real.shape[3], ("real",)).to(device).train()
        optimizer = Adam(classifier.parameters())
        batch_size = min(BATCH_SIZE, len(real))
        generator = np.random.default_rng(seed)
        for learning_rate, beta1 in one_cycle(LEARNING_RATE, NUM_STEPS):
            chosen = generator.choice(len(real), batch_size, replace=False)
            logits = _logits(classifier, real[chosen], decoded[chosen], device)
            optimizer.zero_grad()
            functional.softplus(-logits).mean().backward()
            optimizer.step(learning_rate, beta1=beta1)
        return _accuracy(classifier.eval(), heldout, device)


@torch.no_grad()
def _accuracy(classifier: Classifier, pairs: Pairs, device: torch.device) -> float:
    """The share of images and reconstructions that are recognised; a logit of 0 counts half."""
    real, decoded = pairs
    correct = []
    for start in range(0, len(real), BATCH_SIZE):
        chosen = slice(start, start + BATCH_SIZE)
        correct.append((1 + _logits(classifier, real[chosen], decoded[chosen], device).sign()) / 2)
    return float(torch.cat(correct).double().mean())


def _logits(
    classifier: Classifier, real: NDArray[np.uint8], decoded: NDArray[np.uint8], device: torch.device
) -> Tensor:
    """The logits of N images, and minus those of their reconstructions, (2 N,): positive is right."""
    logits: Tensor = classifier(to_unit_range(np.concatenate([real, decoded]), device))[:, 0]
    return torch.cat([logits[: len(real)], -logits[len(real) :]])
