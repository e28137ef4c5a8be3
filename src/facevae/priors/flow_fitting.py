"""Train the velocity of the flow matching prior on draws from the posteriors."""

import copy
import math

import torch
from torch import Tensor, nn

from facevae.concurrency import seeded
from facevae.model.vae import Posterior
from facevae.priors.flow_matching import FlowMatching
from facevae.priors.normal import aggregate_gaussian, whiten
from facevae.priors.velocity import Velocity
from facevae.train.muon import Muon
from facevae.train.optimizers import Adam

MAX_STEPS = 1800
MAX_EPOCHS = 200  # fewer steps for small sets, which are soon known by heart
BATCH_SIZE = 256
MUON_LEARNING_RATE = 0.02  # of thin matrices
ADAM_LEARNING_RATE = 0.002  # of biases and the square one
MOMENTUM = 0.95
WARMUP_SHARE = 0.05  # of the steps
AVERAGE_DECAY = 0.999
UNLABELLED_SHARE = 0.25  # of the examples: nothing is said about any of their attributes
NUM_CHECKS = 24  # of the loss on held-out latents
PATIENCE = 5  # checks
NUM_REPEATS = 4  # noises and times for each held-out latent
MAX_EXAMPLES = 4096  # training images whose labels the flow keeps, to draw with

Example = tuple[Tensor, Tensor, Tensor, Tensor]  # latents, noise (batch, latent_dim), times (batch, 1), labels


def fit_flow_matching(
    train: Posterior, heldout: Tensor, labels: Tensor, attributes: tuple[str, ...], *, seed: int
) -> FlowMatching:
    """Train a velocity on draws from the posteriors; keep the averaged weights that suit held-out latents best.

    Parameters
    ----------
    train
        Posteriors of the training images.
    heldout
        Latents (N, latent_dim) of held-out images.
    labels, attributes
        Of the training images: (num_train, num_attributes), 1 or -1, and the names.
    seed
        Determines the initial weights and all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, factor = aggregate_gaussian(train)
    examples = _Examples(train, labels, mean, factor)
    check = examples.heldout(whiten(heldout, mean, factor).float(), generator)
    with seeded(seed):
        velocity = Velocity(len(mean), len(attributes))
    average = copy.deepcopy(velocity).requires_grad_(False).eval()
    # To orthogonalise the square weight would take four fifths of a step, and samples are as good without
    muon = Muon(
        nn.ModuleList(layer for layer in velocity.children() if layer is not velocity.second), momentum=MOMENTUM
    )
    adam = Adam(weight for weight in velocity.parameters() if weight.ndim < 2 or weight is velocity.second.weight)
    num_steps = min(MAX_STEPS, math.ceil(MAX_EPOCHS * len(train.mean) / BATCH_SIZE))
    interval = math.ceil(num_steps / NUM_CHECKS)
    lowest, best_step, best_weights = _check(average, check), 0, copy.deepcopy(average.state_dict())
    for step in range(1, num_steps + 1):
        rate = min(1.0, step / (WARMUP_SHARE * num_steps)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / num_steps))
        muon.zero_grad()
        adam.zero_grad()
        _loss(velocity, examples.draw(generator)).backward()
        muon.step(MUON_LEARNING_RATE * rate)
        adam.step(ADAM_LEARNING_RATE * rate)
        share = 1 - min(AVERAGE_DECAY, step / (step + 9))  # the first averages soon forget the initial weights
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(velocity.parameters()), share)
        if step % interval == 0:
            loss = _check(average, check)
            if loss < lowest:
                lowest, best_step, best_weights = loss, step, copy.deepcopy(average.state_dict())
            elif step - best_step >= PATIENCE * interval:
                break
    average.load_state_dict(best_weights)
    kept = labels[torch.randperm(len(labels), generator=generator)[:MAX_EXAMPLES]]
    return FlowMatching(average, mean, factor, attributes, kept.to(torch.int8))


class _Examples:
    """Whitened latents with noise, times and labels."""

    def __init__(self, train: Posterior, labels: Tensor, mean: Tensor, factor: Tensor) -> None:
        self.means = whiten(train.mean, mean, factor).float()
        self.deviations = torch.exp(0.5 * train.log_variance)
        self.whitening = torch.linalg.inv(factor).float().T
        self.labels = labels

    def draw(self, generator: torch.Generator) -> Example:
        """A batch of draws from the posteriors of random images, each with some of its labels."""
        images = torch.randint(len(self.means), (BATCH_SIZE,), generator=generator)
        spread = self.deviations[images] * _noise_like(self.means[images], generator)
        latent = self.means[images] + spread @ self.whitening
        is_labelled = torch.rand(len(latent), 1, generator=generator) >= UNLABELLED_SHARE
        known_share = is_labelled * torch.rand(len(latent), 1, generator=generator)
        labels = self.labels[images]
        is_known = torch.rand(labels.shape, generator=generator) < known_share
        return latent, _noise_like(latent, generator), _times(len(latent), generator), labels * is_known

    def heldout(self, latent: Tensor, generator: torch.Generator) -> Example:
        """Several noises and times for each held-out latent, without labels."""
        latent = latent.repeat(NUM_REPEATS, 1)
        labels = torch.zeros(len(latent), self.labels.shape[1])
        return latent, _noise_like(latent, generator), _times(len(latent), generator), labels


def _loss(velocity: Velocity, example: Example) -> Tensor:
    """Squared error of the velocity on straight paths from noise to latents, mean over the batch.

    Lipman et al. 2023, arXiv 2210.02747, equation 23, without noise at the end of the path.
    """
    latent, noise, times, labels = example
    predicted: Tensor = velocity(torch.lerp(noise, latent, times), times, labels)
    return (predicted - (latent - noise)).square().sum(1).mean()


@torch.no_grad()
def _check(velocity: Velocity, example: Example) -> float:
    return float(_loss(velocity, example))


def _noise_like(latent: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(latent.shape, generator=generator)


def _times(num_times: int, generator: torch.Generator) -> Tensor:
    """Times (num_times, 1) whose logits are standard normal (arXiv 2403.03206, equation 19)."""
    return torch.sigmoid(torch.randn(num_times, 1, generator=generator))
