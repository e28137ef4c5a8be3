"""One training step: the objective, gradients, clipping, skipping, the optimisers and the averaged weights.

Nothing in a step waits for the device.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facevae.config.schema import TrainParams
from facevae.device import autocast
from facevae.model.objective import (
    LOG_SIGMA_FLOOR,
    importance_weighted_terms,
    kl_nats,
    predict,
    reconstruction_term,
)
from facevae.model.vae import VAE
from facevae.train.averaging import move_average
from facevae.train.distributed import ALONE, Workers, share_batch_norm
from facevae.train.muon import Muon
from facevae.train.optimizers import Adam
from facevae.train.schedules import kl_weight_at, learning_rate_factor

ADVICE = (
    "Training has become unstable: lower train.learning_rate, raise train.learning_rate_warmup_steps or "
    "train.kl_warmup_epochs, or set train.precision to float32."
)
SIGMA_FACTOR = 10  # learning rate of log sigma, relative to Adam's of the weights


class StepReport(NamedTuple):
    """What a step tells the loop.

    Attributes
    ----------
    terms
        Reconstruction, KL and any further losses, sums over this process's images.
    norm
        The gradient's norm.
    skipped
        Whether the step was skipped.
    """

    terms: Tensor
    norm: Tensor
    skipped: Tensor


class Objective(nn.Module):
    """The two terms of the loss; a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: VAE, params: TrainParams, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._params = params
        self._device = device

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Reconstruction and KL (2,), sums over images (batch, channel, height, width).

        The noise of all draws of an image is a row of (batch, draws * latent_dim). Both sums are float32, whatever the
        precision of the network.
        """
        likelihood, log_sigma = self._params.likelihood, self.model.log_sigma
        draws = noise.unflatten(1, (-1, self.model.params.latent_dim)).transpose(0, 1)  # (draws, batch, latent_dim)
        with autocast(self._params.precision, self._device):
            posterior = self.model.encode(images)
            latent = posterior.at(draws)
            prediction = predict(self.model, likelihood, latent.flatten(0, 1))
        shown = torch.cat([images] * len(draws))  # keeps the memory format
        errors = reconstruction_term(likelihood, prediction, shown, log_sigma).view(len(draws), -1)
        if len(draws) == 1:
            return torch.stack([errors.sum(), kl_nats(posterior).sum()])
        terms = importance_weighted_terms(errors, latent, posterior)
        return torch.stack([term.sum() for term in terms])


class Optimization:
    """A model and everything that changes from step to step.

    Attributes
    ----------
    model
        The model in training.
    validated
        The model to validate and keep: `model`, or one with the average of its weights over the steps.
    validation_objective
        The objective of `validated`.
    optimizers
        Each with its learning rate before schedules.
    step
        The number of steps taken, skipped ones included.
    """

    further_losses: Sequence[str] = ()
    advice = ADVICE

    def __init__(
        self,
        model: VAE,
        params: TrainParams,
        steps_per_epoch: int,
        device: torch.device,
        workers: Workers = ALONE,
    ) -> None:
        if workers.size > 1:
            share_batch_norm(model, device)
        self.model = model
        self.params = params
        self.steps_per_epoch = steps_per_epoch
        self.device = device
        self.step = 0
        model.log_sigma.requires_grad_(params.likelihood == "gaussian")
        self.optimizers = _optimizers(model, params)
        self.validated = model if params.average_decay is None else copy.deepcopy(model)
        self.validation_objective = Objective(self.validated, params, device)
        self._objective = workers.parallel(Objective(model, params, device))
        self._num_workers = workers.size

    def take_step(self, parts: Sequence[tuple[Tensor, Tensor]], num_images: int) -> StepReport:
        """Update the weights by a batch of `num_images` images, of which `parts` is this process's share.

        A part is a pair of images (batch, channel, height, width) and noise (batch, draws * latent_dim).
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # batch normalisation's running statistics
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad()
        terms = torch.stack([self._add_gradients(*part, num_images, part is parts[-1]) for part in parts]).sum(0)
        trained = [weight for optimizer, _ in self.optimizers for weight in optimizer.weights]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
        skip = ~torch.isfinite(norm)
        if self.params.skip_gradient_norm is not None:
            skip |= norm > self.params.skip_gradient_norm
        limit = self.params.clip_gradient_norm
        divisor = None if limit is None else (norm / limit).clamp(min=1)
        for optimizer, learning_rate in self.optimizers:
            optimizer.step(learning_rate * self._learning_rate_factor(self.step), divisor=divisor, skip=skip)
        self.model.log_sigma.data.clamp_(min=LOG_SIGMA_FLOOR)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(skip, before, buffer))
        self.step += 1
        if self.params.average_decay is not None:
            move_average(self.validated, self.model, self.params.average_decay, self.step, skip)
        return StepReport(terms, norm, skip)

    def _add_gradients(self, images: Tensor, noise: Tensor, num_images: int, is_last: bool) -> Tensor:
        """Add a part's gradients and return its terms; the last part averages the gradients over the processes."""
        objective = self._objective
        with objective.no_sync() if isinstance(objective, DistributedDataParallel) and not is_last else nullcontext():
            terms: Tensor = objective(images, noise)
            reconstruction, kl = terms
            kl_weight = kl_weight_at(self.params, (self.step + 1) / self.steps_per_epoch)
            # DistributedDataParallel averages over the processes; the factor turns that into a mean over the images
            ((reconstruction + kl_weight * kl) * (self._num_workers / num_images)).backward()
        return terms.detach()

    def learning_rate(self, step: int) -> float:
        """Adam's learning rate of a step, counted from 0."""
        return self.params.learning_rate * self._learning_rate_factor(step)

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.params, step, self.params.epochs * self.steps_per_epoch)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average and the optimisers' moments by name; not copies."""
        named = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        if self.validated is not self.model:
            named |= {f"average.{name}": weight for name, weight in self.validated.state_dict().items()}
        for index, moments in enumerate(self._moments()):
            named |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
        return named

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Return to the state after `step` steps, which `tensors` described then."""
        self.step = step
        self.model.load_state_dict(with_prefix(tensors, "model."))
        if self.validated is not self.model:
            self.validated.load_state_dict(with_prefix(tensors, "average."))
        for index, moments in enumerate(self._moments()):
            for name, stored in with_prefix(tensors, f"optimizer.{index}.").items():
                moments[name].copy_(stored)

    def _moments(self) -> list[dict[str, Tensor]]:
        return [moments for optimizer, _ in self.optimizers for moments in optimizer.moments]


def _optimizers(model: VAE, params: TrainParams) -> list[tuple[Adam | Muon, float]]:
    """The optimisers of a model's weights, each with its full learning rate."""
    weights = [weight for weight in model.parameters() if weight is not model.log_sigma]
    optimizers: list[tuple[Adam | Muon, float]] = []
    if params.optimizer == "muon":
        assert params.muon_learning_rate is not None  # config.checks
        assert params.momentum is not None
        optimizers.append((Muon(model, momentum=params.momentum), params.muon_learning_rate))
        weights = [weight for weight in weights if weight.ndim < 2]
    optimizers.append((Adam(weights), params.learning_rate))
    optimizers.append(
        (Adam([model.log_sigma] if model.log_sigma.requires_grad else []), SIGMA_FACTOR * params.learning_rate)
    )
    return optimizers


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
