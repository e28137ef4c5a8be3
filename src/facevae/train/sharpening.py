"""Sharpening: the decoder trains on against a discriminator, and the encoder stays as it is.

A Gaussian with independent pixels asks for the mean of all images that a latent may stand for, which is blurred. A
discriminator asks for one of them. Latents keep their meaning, because the encoder does not change.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from facevae.config.schema import SharpenParams, TrainParams
from facevae.device import autocast
from facevae.errors import UserError
from facevae.model.objective import kl_nats, reconstruction_term, squared_error
from facevae.model.vae import VAE
from facevae.train.batches import Batch
from facevae.train.discriminator import Discriminator, adversarial_loss, discriminator_loss, feature_loss
from facevae.train.epoch import EpochRow, loss_row
from facevae.train.optimizers import Adam
from facevae.train.schedules import warm_cosine
from facevae.train.step import Objective, moved_average, with_prefix

BETA1 = 0.5  # of Adam: with the usual 0.9 the two sides swing past each other
AVERAGE_DECAY = 0.99  # of the decoder's weights, which circle as the discriminator moves
WARMUP_STEPS = 100
LOSSES = ("discriminator_loss", "adversarial_loss", "feature_loss")


class SharpeningReport(NamedTuple):
    """What a step tells the loop.

    Attributes
    ----------
    terms
        Reconstruction, KL and the `LOSSES` (5,), sums over the images.
    norm
        The gradient's norm, of both sides together.
    skipped
        Whether the step was skipped.
    """

    terms: Tensor
    norm: Tensor
    skipped: Tensor


class Sharpening:
    """A model, the discriminator, and everything that changes from step to step.

    Attributes
    ----------
    model
        The model in training.
    validated
        The model to validate and keep, with the average of the decoder's weights over the steps.
    step
        The number of steps taken, skipped ones included.
    """

    def __init__(
        self,
        model: VAE,
        params: SharpenParams,
        train_params: TrainParams,
        steps_per_epoch: int,
        device: torch.device,
        *,
        seed: int,
    ) -> None:
        self.model = model
        self.validated = copy.deepcopy(model)
        self.validation_objective = Objective(self.validated, train_params, device)
        self.params = params
        self.train_params = train_params
        self.steps_per_epoch = steps_per_epoch
        self.device = device
        self.step = 0
        torch.manual_seed(seed)
        self._discriminator = Discriminator(params.discriminator_channels, model.image_channels).to(device)
        self._sides = model.decoder, self._discriminator
        self._optimizers = [Adam(side.parameters()) for side in self._sides]

    def take_step(self, parts: Sequence[tuple[Tensor, Tensor]], num_images: int) -> SharpeningReport:
        """Update both sides by a batch of `num_images` images, each from the other's state before the step.

        A part is a pair of images (batch, channel, height, width) and noise (batch, latent_dim).
        """
        buffers = [buffer for side in self._sides for buffer in side.buffers()]
        before = [buffer.clone() for buffer in buffers]  # batch normalisation's and spectral normalisation's
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        terms = torch.stack([self._add_gradients(*part, len(part[0]) / num_images) for part in parts]).sum(0)
        weights = [weight for optimizer in self._optimizers for weight in optimizer.weights]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        skip = ~torch.isfinite(norm)
        for optimizer in self._optimizers:
            optimizer.step(self.learning_rate(self.step), beta1=BETA1, skip=skip)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(skip, old, buffer))
        self.step += 1
        move_average(self.validated.decoder, self.model.decoder, AVERAGE_DECAY, self.step, skip)
        return SharpeningReport(terms, norm, skip)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: a linear warm-up, then half a cosine to 0."""
        num_steps = self.params.epochs * self.steps_per_epoch
        return self.params.learning_rate * warm_cosine(step, num_steps, WARMUP_STEPS)

    def tensors(self) -> dict[str, Tensor]:
        """Both sides, the average and the optimisers' moments by name; not copies."""
        named = {}
        for side, module in self._modules().items():
            named |= {f"{side}.{name}": tensor for name, tensor in module.state_dict().items()}
        for index, moments in enumerate(self._moments()):
            named |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
        return named

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Return to the state after `step` steps, which `tensors` described then."""
        self.step = step
        for side, module in self._modules().items():
            module.load_state_dict(with_prefix(tensors, f"{side}."))
        for index, moments in enumerate(self._moments()):
            for name, stored in with_prefix(tensors, f"optimizer.{index}.").items():
                moments[name].copy_(stored)

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "average": self.validated, "discriminator": self._discriminator}

    def _moments(self) -> list[dict[str, Tensor]]:
        return [moments for optimizer in self._optimizers for moments in optimizer.moments]
