"""The one training loop; it knows nothing of files, DVC or MLflow."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from facevae import objective
from facevae.binarization import binarize
from facevae.errors import UserError
from facevae.files import round_number
from facevae.hardware import autocast, set_up_device
from facevae.model import VAE, to_unit_range
from facevae.params import ModelParams, TrainParams

SIGMA_FACTOR = 10  # times the learning rate: alone it has as far to go as all weights together, in steps of that size
REPORT_EVERY = 20  # steps between looks at numbers that live on the device

EpochRow = dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, in evaluation mode and on the CPU, with the weights of its best epoch.

    `history` has one row an epoch; `best_epoch` is the one with the lowest validation loss, counted from 1.
    """

    model: VAE
    history: pd.DataFrame
    best_epoch: int

    def summary(self) -> dict[str, float]:
        """The figures of the best epoch, and the number of skipped steps of all epochs."""
        best = self.history.iloc[self.best_epoch - 1]
        return {
            "best_epoch": self.best_epoch,
            "best_train_loss": float(best["train_loss"]),
            "best_validation_loss": float(best["validation_loss"]),
            "total_skipped_steps": int(self.history["skipped_steps"].sum()),
        }


def train(
    train_images: NDArray[np.uint8],
    validation_images: NDArray[np.uint8],
    model_params: ModelParams,
    params: TrainParams,
    *,
    seed: int,
    on_epoch: Callable[[EpochRow], None],
) -> TrainingResult:
    """Train a VAE with Adam and keep the weights of the best epoch.

    Parameters
    ----------
    train_images, validation_images
        Shape (N, height, width, channels); memory maps will do.
    model_params, params
        The architecture; the objective and its optimisation.
    seed
        Determines the initial weights, the order of the images, the noise and the dropout.
    on_epoch
        Called after each epoch with its row of the history.

    Raises
    ------
    UserError
        Too many steps exploded, or the validation loss is not finite: the message says what to change.
    """
    torch.manual_seed(seed)
    device = set_up_device(params)
    _, image_size, _, image_channels = train_images.shape
    model = VAE(model_params, image_size, image_channels).to(device)
    loop = _Loop(model, params, len(train_images), device, seed)
    validation_images = binarize(validation_images, params.binarization, seed)
    rows: list[EpochRow] = []
    best_epoch, best_loss, best_weights = 0, math.inf, model.state_dict()
    with tqdm(total=params.epochs * len(train_images), desc="train", unit="image", disable=None) as bar:
        for epoch in range(1, params.epochs + 1):
            images = binarize(train_images, params.binarization, seed, epoch)
            numbers = {"epoch": epoch, **loop.train_epoch(images, bar), **loop.validate(validation_images)}
            row = {key: round_number(value) for key, value in numbers.items()}
            if not math.isfinite(row["validation_loss"]):
                raise UserError(f"the validation loss is {row['validation_loss']} after epoch {epoch}. {_ADVICE}")
            if row["validation_loss"] < best_loss:
                best_epoch, best_loss = epoch, row["validation_loss"]
                best_weights = copy.deepcopy(loop.validated.state_dict())
            rows.append(row)
            on_epoch(row)
    model.load_state_dict(best_weights)
    history = pd.DataFrame(rows).astype({"epoch": int, "skipped_steps": int})
    return TrainingResult(model.cpu().eval(), history, best_epoch)


def learning_rate_at(params: TrainParams, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then constant or half a cosine down to zero."""
    warmup = min(1.0, (step + 1) / (params.learning_rate_warmup_steps + 1))
    decay = 0.5 * (1 + math.cos(math.pi * step / num_steps)) if params.learning_rate_decay == "cosine" else 1.0
    return params.learning_rate * warmup * decay


def num_batches(num_images: int, batch_size: int) -> int:
    """How many batches an epoch has: a single image that is left over joins the batch before it.

    Alone it would have no variance over which batch normalisation could normalise a map of one pixel.
    """
    whole, rest = divmod(num_images, batch_size)
    return max(1, whole + (rest > 1))


def kl_weight_at(params: TrainParams, epochs: float) -> float:
    """The weight of the KL term after `epochs` (a fraction will do): it rises from 0 to beta during the warm-up."""
    return params.beta * min(1.0, epochs / params.kl_warmup_epochs) if params.kl_warmup_epochs else params.beta


class _Loop:
    """Model, optimiser, generators and position, as they go from epoch to epoch."""

    def __init__(self, model: VAE, params: TrainParams, num_images: int, device: torch.device, seed: int) -> None:
        self.model = model
        self.params = params
        self.device = device
        self.seed = seed
        self.step = 0
        self.steps_per_epoch = num_batches(num_images, params.batch_size)
        self.order = np.random.default_rng(seed)
        self.noise = torch.Generator(device).manual_seed(seed)
        model.log_sigma.requires_grad_(params.likelihood == "gaussian")
        self.trainable = [weight for weight in model.parameters() if weight.requires_grad]
        groups = [[weight for weight in self.trainable if weight is not model.log_sigma]]
        if params.likelihood == "gaussian":
            groups.append([model.log_sigma])
        self.optimizer = torch.optim.Adam([{"params": group} for group in groups], lr=params.learning_rate, fused=True)
        self.validated = model if params.average_decay is None else copy.deepcopy(model)  # what is validated and kept

    def train_epoch(self, images: NDArray[np.uint8], bar: "tqdm[NoReturn]") -> EpochRow:
        """One pass over all images in a new order; means are over the steps that were taken."""
        self.model.train()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # reconstruction, KL
        num_taken = torch.zeros((), dtype=torch.float64, device=self.device)  # images of steps that were not skipped
        num_skipped = torch.zeros((), device=self.device)
        largest_norm = torch.zeros((), device=self.device)
        for batch in _batches(images, self.params.batch_size, self.order.permutation(len(images))):
            terms, norm, skip = self._train_step(to_unit_range(batch, self.device))
            totals += torch.where(skip, 0.0, terms) * len(batch)
            num_taken += torch.where(skip, 0, len(batch))
            num_skipped += skip
            largest_norm = torch.where(skip, largest_norm, torch.maximum(largest_norm, norm))
            bar.update(len(batch))
            if self.step % REPORT_EVERY == 0 or self.step % self.steps_per_epoch == 0:
                self._check_skipped(int(num_skipped))
                row = self._row("train", totals, float(num_taken))
                bar.set_postfix({key.removeprefix("train_"): f"{value:.1f}" for key, value in row.items()})
        return {
            **row,
            "learning_rate": self._learning_rate(self.step - 1),
            "largest_gradient_norm": float(largest_norm),
            "skipped_steps": float(num_skipped),
        }

    @torch.no_grad()
    def validate(self, images: NDArray[np.uint8]) -> EpochRow:
        """Means over all images, in evaluation mode, with the same noise every time."""
        self.validated.eval()
        noise = torch.Generator(self.device).manual_seed(self.seed)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in _batches(images, self.params.batch_size, np.arange(len(images))):
            totals += torch.stack(self._terms(self.validated, to_unit_range(batch, self.device), noise)) * len(batch)
        return self._row("validation", totals, len(images))

    def _train_step(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update the weights; gives reconstruction and KL (2,), the gradient's norm, and whether the step was skipped.

        The optimiser is told of the clipping and of the skip by the two tensors through which PyTorch's own loss
        scaling speaks to fused optimisers, so that nothing waits for the device.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # batch normalisation's running statistics
        reconstruction, kl = self._terms(self.model, images, self.noise)
        self.optimizer.zero_grad()
        (reconstruction + self._kl_weight() * kl).backward()
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in self.trainable if weight.grad is not None])
        scaling: Any = self.optimizer
        skip = ~torch.isfinite(norm)
        if self.params.skip_gradient_norm is not None:
            skip |= norm > self.params.skip_gradient_norm
        if self.params.clip_gradient_norm is not None:
            scaling.grad_scale = (norm / self.params.clip_gradient_norm).clamp(min=1)  # it divides the gradients
        scaling.found_inf = skip.float()
        for group, factor in zip(self.optimizer.param_groups, (1, SIGMA_FACTOR), strict=False):
            group["lr"] = factor * self._learning_rate(self.step)
        self.optimizer.step()
        self.model.log_sigma.data.clamp_(min=objective.LOG_SIGMA_FLOOR)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(skip, before, buffer))
        self.step += 1
        if self.params.average_decay is not None:
            self._average(self.params.average_decay)
        return torch.stack([reconstruction, kl]).detach(), norm, skip

    def _terms(self, model: VAE, images: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL, means over a batch, in float32 whatever the network is in."""
        with autocast(self.params.precision, self.device):
            posterior = model.encode(images)
            reconstruction = model.decode(posterior.sample(noise))
        likelihood, log_sigma = self.params.likelihood, model.log_sigma
        reconstruction_term = objective.reconstruction_term(likelihood, reconstruction, images, log_sigma)
        return reconstruction_term.mean(), objective.kl_nats(posterior).mean()

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Move what is validated a little towards the weights (Polyak and Juditsky 1992), more in the first steps."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for average, current in zip(
            self.validated.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:  # the number of batches that batch normalisation has seen
                average.copy_(current)

    def _row(self, split: str, totals: Tensor, num_images: float) -> EpochRow:
        """Mean reconstruction and KL, and the loss that they add up to at the full weight of the KL."""
        reconstruction, kl = (totals / num_images).tolist()
        return {
            f"{split}_loss": reconstruction + self.params.beta * kl,
            f"{split}_reconstruction": reconstruction,
            f"{split}_kl": kl,
        }

    def _kl_weight(self) -> float:
        return kl_weight_at(self.params, (self.step + 1) / self.steps_per_epoch)

    def _check_skipped(self, num_skipped: int) -> None:
        if num_skipped > self.params.max_skipped_steps or num_skipped == self.steps_per_epoch:
            raise UserError(
                f"{num_skipped} steps of one epoch had a gradient that was not finite or longer than "
                f"train.skip_gradient_norm {self.params.skip_gradient_norm}; train.max_skipped_steps allows "
                f"{self.params.max_skipped_steps}, and not all of them; training stopped at step {self.step}. {_ADVICE}"
            )

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(self.params, step, self.params.epochs * self.steps_per_epoch)


def _batches(images: NDArray[np.uint8], batch_size: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    last = num_batches(len(order), batch_size) - 1
    for index in range(last + 1):
        start = index * batch_size
        yield images[order[start:] if index == last else order[start : start + batch_size]]


_ADVICE = (
    "Training has become unstable: lower train.learning_rate, raise train.learning_rate_warmup_steps or "
    "train.kl_warmup_epochs, or set train.precision to float32."
)
