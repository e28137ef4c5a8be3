"""The one training loop; it knows nothing of files, DVC or MLflow."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from facevae.binarization import binarize
from facevae.errors import UserError
from facevae.files import round_number
from facevae.hardware import set_up_device
from facevae.model import VAE, to_unit_range
from facevae.optimization import Optimization, with_prefix
from facevae.params import TrainParams

REPORT_EVERY = 20  # steps between looks at numbers that live on the device

EpochRow = dict[str, float]


@dataclass(frozen=True)
class Progress:
    """Where a training is at the end of an epoch: what is to come depends on nothing else.

    `rows` is the history so far, one row an epoch. `tensors` are the weights, their average, the optimiser's moments
    and the weights of the best epoch, by name: not copies, so they are to be used before training goes on.
    """

    rows: list[EpochRow]
    tensors: dict[str, Tensor]


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
    model: VAE,
    train_images: NDArray[np.uint8],
    validation_images: NDArray[np.uint8],
    params: TrainParams,
    *,
    seed: int,
    start: Progress | None,
    on_epoch: Callable[[Progress], None],
) -> TrainingResult:
    """Train a VAE with Adam and keep the weights of the best epoch.

    Parameters
    ----------
    model
        With its initial weights; it is trained in place.
    train_images, validation_images
        Shape (N, height, width, channels); memory maps will do.
    params
        The objective and its optimisation.
    seed
        Determines the order of the images, how they are flipped, the noise and the dropout, anew for each epoch.
    start
        Where a training of the same arguments was, to go on from there to the same result; None: from the beginning.
    on_epoch
        Called after each epoch.

    Raises
    ------
    UserError
        Too many steps exploded, or the validation loss is not finite: the message says what to change.
    """
    device = set_up_device(params)
    loop = _Loop(model.to(device), params, len(train_images), device, seed)
    validation_images = binarize(validation_images, params.binarization, seed)
    rows, best_weights = [], model.state_dict()
    if start is not None:
        rows = list(start.rows)
        best_weights = with_prefix(start.tensors, "best.")
        loop.optimization.restore(start.tensors, len(rows) * loop.steps_per_epoch)
    num_images, num_done = params.epochs * len(train_images), len(rows) * len(train_images)
    with tqdm(total=num_images, initial=num_done, desc="train", unit="image", disable=None) as bar:
        for epoch in range(len(rows) + 1, params.epochs + 1):
            images = binarize(train_images, params.binarization, seed, epoch)
            numbers = {"epoch": epoch, **loop.train_epoch(images, epoch, bar), **loop.validate(validation_images)}
            rows.append({key: round_number(value) for key, value in numbers.items()})
            if not math.isfinite(rows[-1]["validation_loss"]):
                raise UserError(f"the validation loss is {rows[-1]['validation_loss']} after epoch {epoch}. {_ADVICE}")
            if _best_epoch(rows) == epoch:
                best_weights = copy.deepcopy(loop.optimization.validated.state_dict())
            best = {f"best.{name}": weight for name, weight in best_weights.items()}
            on_epoch(Progress(rows, loop.optimization.tensors() | best))
    model.load_state_dict(best_weights)
    history = pd.DataFrame(rows).astype({"epoch": int, "skipped_steps": int})
    return TrainingResult(model.cpu().eval(), history, _best_epoch(rows))


def num_batches(num_images: int, batch_size: int) -> int:
    """How many batches an epoch has: a single image that is left over joins the batch before it.

    Alone it would have no variance over which batch normalisation could normalise a map of one pixel.
    """
    whole, rest = divmod(num_images, batch_size)
    return max(1, whole + (rest > 1))


class _Loop:
    """An optimisation that is led through epochs."""

    def __init__(self, model: VAE, params: TrainParams, num_images: int, device: torch.device, seed: int) -> None:
        self.params = params
        self.device = device
        self.seed = seed
        self.steps_per_epoch = num_batches(num_images, params.batch_size)
        self.optimization = Optimization(model, params, self.steps_per_epoch, device)

    def train_epoch(self, images: NDArray[np.uint8], epoch: int, bar: "tqdm[NoReturn]") -> EpochRow:
        """One pass over all images in a new order; means are over the steps that were taken."""
        optimization = self.optimization
        optimization.model.train()
        order, noise = self._randomness_of(epoch)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # reconstruction, KL
        num_taken = torch.zeros((), dtype=torch.float64, device=self.device)  # images of steps that were not skipped
        num_skipped = torch.zeros((), device=self.device)
        largest_norm = torch.zeros((), device=self.device)
        for batch in _batches(images, self.params.batch_size, order.permutation(len(images))):
            inputs = self._flip_some(to_unit_range(batch, self.device), noise)
            terms, norm, skipped = optimization.take_step(inputs, self._noise(len(batch), noise))
            totals += torch.where(skipped, 0.0, terms) * len(batch)
            num_taken += torch.where(skipped, 0, len(batch))
            num_skipped += skipped
            largest_norm = torch.where(skipped, largest_norm, torch.maximum(largest_norm, norm))
            bar.update(len(batch))
            if optimization.step % REPORT_EVERY == 0 or optimization.step % self.steps_per_epoch == 0:
                self._check_skipped(int(num_skipped))
                row = self._row("train", totals, float(num_taken))
                bar.set_postfix({key.removeprefix("train_"): f"{value:.1f}" for key, value in row.items()})
        return {
            **row,
            "learning_rate": optimization.learning_rate(optimization.step - 1),
            "largest_gradient_norm": float(largest_norm),
            "skipped_steps": float(num_skipped),
        }

    @torch.no_grad()
    def validate(self, images: NDArray[np.uint8]) -> EpochRow:
        """Means over all images, in evaluation mode, with the same noise every time."""
        model = self.optimization.validated.eval()
        noise = torch.Generator(self.device).manual_seed(self.seed)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in _batches(images, self.params.batch_size, np.arange(len(images))):
            inputs = to_unit_range(batch, self.device)
            totals += torch.stack(self.optimization.terms(model, inputs, self._noise(len(batch), noise))) * len(batch)
        return self._row("validation", totals, len(images))

    def _randomness_of(self, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
        """Generators of the order and of the noise; dropout draws from the global one, which is seeded too.

        An epoch's randomness depends on its number alone, so that a training can go on from any of them.
        """
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        return np.random.default_rng(seed), torch.Generator(self.device).manual_seed(seed)

    def _noise(self, num_images: int, generator: torch.Generator) -> Tensor:
        latent_dim = self.optimization.model.params.latent_dim
        return torch.randn(num_images, latent_dim, generator=generator, device=self.device)

    def _flip_some(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Every other image, by chance, as in a mirror: a face is as likely to look left as right."""
        if not self.params.horizontal_flip:
            return images
        flipped = torch.rand(len(images), 1, 1, 1, generator=generator, device=self.device) < 0.5
        return torch.where(flipped, images.flip(3), images)

    def _row(self, split: str, totals: Tensor, num_images: float) -> EpochRow:
        """Mean reconstruction and KL, and the loss that they add up to at the full weight of the KL."""
        reconstruction, kl = (totals / num_images).tolist()
        return {
            f"{split}_loss": reconstruction + self.params.beta * kl,
            f"{split}_reconstruction": reconstruction,
            f"{split}_kl": kl,
        }

    def _check_skipped(self, num_skipped: int) -> None:
        if num_skipped > self.params.max_skipped_steps or num_skipped == self.steps_per_epoch:
            raise UserError(
                f"{num_skipped} steps of one epoch had a gradient that was not finite or longer than "
                f"train.skip_gradient_norm {self.params.skip_gradient_norm}; train.max_skipped_steps allows "
                f"{self.params.max_skipped_steps}, and not all of them; training stopped at step "
                f"{self.optimization.step}. {_ADVICE}"
            )


def _best_epoch(rows: list[EpochRow]) -> int:
    """The first one with the lowest validation loss, counted from 1."""
    losses = [row["validation_loss"] for row in rows]
    return 1 + losses.index(min(losses))


def _batches(images: NDArray[np.uint8], batch_size: int, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    last = num_batches(len(order), batch_size) - 1
    for index in range(last + 1):
        start = index * batch_size
        yield images[order[start:] if index == last else order[start : start + batch_size]]


_ADVICE = (
    "Training has become unstable: lower train.learning_rate, raise train.learning_rate_warmup_steps or "
    "train.kl_warmup_epochs, or set train.precision to float32."
)
