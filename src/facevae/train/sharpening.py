"""Sharpening: the decoder trains on against a discriminator, and the encoder stays as it is.

A Gaussian with independent pixels asks for the mean of all images that a latent may stand for, which is blurred. A
discriminator asks for one of them. Latents keep their meaning, because the encoder does not change.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from facevae.config.schema import SharpenParams, TrainParams
from facevae.device import autocast
from facevae.model.objective import kl_nats, reconstruction_term
from facevae.model.vae import VAE, Posterior
from facevae.train.averaging import move_average
from facevae.train.detail import colour_error, grain_loss, pattern_error
from facevae.train.discriminator import Discriminator, adversarial_loss, discriminator_loss, feature_loss
from facevae.train.muon import Muon
from facevae.train.optimizers import Adam
from facevae.train.schedules import half_cosine, warmup
from facevae.train.step import Objective, StepReport, with_prefix

MOMENTUM = 0.95  # of Muon
BETA1 = 0.5  # of Adam: with the usual 0.9 the two sides swing past each other
AVERAGE_DECAY = 0.99  # of the decoder's weights, which circle as the discriminator moves
WARMUP_SHARE = 0.05  # of the steps
DISCRIMINATOR_FACTOR = 2  # learning rates of the discriminator, relative to the decoder's
PATTERN_FACTOR = 2  # weight of `pattern_error`, relative to the squared error's


class Sharpening:
    """A model, the discriminator, and everything that changes from step to step.

    Attributes
    ----------
    model
        The model in training.
    validated
        The model to validate and keep, with the average of the decoder's weights over the steps.
    params
        Those of the training.
    step
        The number of steps taken, skipped ones included.
    """

    further_losses: Sequence[str] = ("discriminator_loss", "adversarial_loss", "feature_loss")
    advice = (
        "Sharpening has become unstable: lower sharpen.muon_learning_rate and sharpen.learning_rate, or set "
        "train.precision to float32."
    )

    def __init__(
        self,
        model: VAE,
        sharpening: SharpenParams,
        params: TrainParams,
        steps_per_epoch: int,
        device: torch.device,
        *,
        seed: int,
    ) -> None:
        self.model = model
        self.validated = copy.deepcopy(model)
        self.validation_objective = Objective(self.validated, params, device)
        self.params = params.model_copy(update={"skip_gradient_norm": None})  # it suits the other loss
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self._sharpening = sharpening
        torch.manual_seed(seed)
        self._discriminator = Discriminator(sharpening.discriminator_channels, model.image_channels).to(device)
        self._sides = model.decoder, self._discriminator
        self._muons = [Muon(side, momentum=MOMENTUM) for side in self._sides]
        self._adams = [Adam(weight for weight in side.parameters() if weight.ndim < 2) for side in self._sides]
        self._optimizers: list[Muon | Adam] = [*self._muons, *self._adams]

    def take_step(self, parts: Sequence[tuple[Tensor, Tensor]], num_images: int) -> StepReport:
        """Update both sides by a batch of `num_images` images, each against the other as it was before the step.

        `parts` holds one pair: images (batch, channel, height, width) and noise (batch, latent_dim).
        """
        [(images, noise)] = parts
        self.model.encoder.eval()
        buffers = [buffer for side in self._sides for buffer in side.buffers()]
        before = [buffer.clone() for buffer in buffers]  # of batch normalisation and of spectral normalisation
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        terms = self._add_gradients(images, noise, num_images)
        weights = [weight for side in self._sides for weight in side.parameters()]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        skip = ~torch.isfinite(norm)
        for factor, muon, adam in zip((1, DISCRIMINATOR_FACTOR), self._muons, self._adams, strict=True):
            schedule = factor * self._learning_rate_factor(self.step)
            muon.step(schedule * self._sharpening.muon_learning_rate, skip=skip)
            adam.step(schedule * self._sharpening.learning_rate, beta1=BETA1, skip=skip)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(skip, old, buffer))
        self.step += 1
        move_average(self.validated.decoder, self.model.decoder, AVERAGE_DECAY, self.step, skip)
        return StepReport(terms, norm, skip)

    def _add_gradients(self, images: Tensor, noise: Tensor, num_images: int) -> Tensor:
        """Add the gradients of a batch of `num_images` images and return its terms."""
        params, weights = self.params, self._sharpening
        with autocast(params.precision, self.device):
            with torch.no_grad():
                posterior = self.model.encode(images)
            decoded = self.model.decode(latents_to_judge(posterior, noise))
            shown = decoded.detach().requires_grad_()  # where the losses of the two sides part
            real, fake = self._discriminator(images), self._discriminator(shown)
        judging = discriminator_loss(real, fake)
        judging.backward(inputs=list(self._discriminator.parameters()), retain_graph=True)
        fooling, features = adversarial_loss(fake), feature_loss(real, fake)
        difference = shown[:num_images] - images
        error = difference.square().mean() + PATTERN_FACTOR * pattern_error(difference)
        loss = weights.adversarial_weight * fooling + weights.feature_weight * features
        loss = loss + weights.squared_error_weight * error
        if weights.colour_weight:
            loss = loss + weights.colour_weight * colour_error(difference)
        if weights.grain_weight:
            loss = loss + weights.grain_weight * grain_loss(shown[:num_images], images)
        (gradient,) = torch.autograd.grad(loss, shown)
        decoded.backward(gradient)
        with torch.no_grad():
            reconstructions = decoded[:num_images]
            nats = reconstruction_term(params.likelihood, reconstructions, images, self.model.log_sigma).sum()
            further = torch.stack([judging, fooling, features]) * num_images
        return torch.cat([torch.stack([nats, kl_nats(posterior).sum()]), further])

    def learning_rate(self, step: int) -> float:
        """Adam's learning rate of the decoder in a step, counted from 0."""
        return self._sharpening.learning_rate * self._learning_rate_factor(step)

    def tensors(self) -> dict[str, Tensor]:
        """Model, average, discriminator and the optimisers' moments by name; not copies."""
        return {f"{part}.{name}": tensor for part, kept in self._parts().items() for name, tensor in kept.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Return to the state after `step` steps, which `tensors` described then."""
        self.step = step
        for part, kept in self._parts().items():
            for name, stored in with_prefix(tensors, f"{part}.").items():
                kept[name].copy_(stored)

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that change, by part and name."""
        modules = {"model": self.model, "average": self.validated, "discriminator": self._discriminator}
        moments = [moments for optimizer in self._optimizers for moments in optimizer.moments]
        return {
            **{part: module.state_dict() for part, module in modules.items()},
            **{f"optimizer.{index}": kept for index, kept in enumerate(moments)},
        }

    def _learning_rate_factor(self, step: int) -> float:
        """What to multiply learning rates by in a step: a linear warm-up, then half a cosine to 0."""
        num_steps = self._sharpening.epochs * self.steps_per_epoch
        return warmup(step, round(WARMUP_SHARE * num_steps)) * half_cosine(step, num_steps)


def latents_to_judge(posterior: Posterior, noise: Tensor) -> Tensor:
    """One latent for each image, then those of new pictures, a quarter as many, (number, latent_dim).

    Every other image has the mean of its posterior, as reconstructions do, the others a draw. A new picture's latent is
    the sum of two draws, scaled to the mean and covariance of the aggregate posterior, as a prior's samples are.
    """
    draws = posterior.at(noise)
    drawn = torch.arange(len(draws), device=draws.device)[:, None] % 2 == 1
    mean = draws.mean(0)
    first, second = (draws - mean)[: len(draws) // 4 * 2].chunk(2)
    return torch.cat([torch.where(drawn, draws, posterior.mean), mean + (first + second) / math.sqrt(2)])
