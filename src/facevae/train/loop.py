"""The one training loop; it knows nothing of files, DVC or MLflow."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from facevae.config.schema import TrainParams
from facevae.device import memory_format
from facevae.errors import UserError
from facevae.model.binarization import binarize
from facevae.model.vae import VAE, largest_map_bytes
from facevae.storage.tables import round_number
from facevae.train.batches import ImageReader, index_batches, num_batches, parts_of
from facevae.train.distributed import ALONE, Workers
from facevae.train.step import Optimization, with_prefix

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
    device: torch.device,
    *,
    seed: int,
    start: Progress | None = None,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
    workers: Workers = ALONE,
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
    device
        Where to train, as `set_up_device` gives it.
    seed
        Determines the order of the images, how they are flipped, the noise and the dropout, anew for each epoch.
    start
        Where a training of the same arguments was, to go on from there to the same result; None: from the beginning.
    on_epoch
        What is called after each epoch.
    workers
        The processes that call this with the same arguments and train together; `start` is that of the first.

    Raises
    ------
    UserError
        Too many steps exploded, or the validation loss is not finite: the message says what to change.
    """
    model.set_memory_format(memory_format(device, largest_map_bytes(model.params, model.image_size)))
    loop = _Loop(model.to(device), params, len(train_images), device, seed, workers)
    start = workers.from_leader(start)
    rows, best_weights = [], model.state_dict()
    if start is not None:
        rows = list(start.rows)
        best_weights = with_prefix(start.tensors, "best.")
        loop.optimization.restore(start.tensors, len(rows) * loop.steps_per_epoch)
    num_images, num_done = params.epochs * len(train_images), len(rows) * len(train_images)
    hidden = None if workers.leads else True  # None: where there is no terminal
    reader, validation_reader = None, ImageReader(binarize(validation_images, params.binarization, seed), device)
    with tqdm(total=num_images, initial=num_done, desc="train", unit="image", disable=hidden) as bar:
        for epoch in range(len(rows) + 1, params.epochs + 1):
            if reader is None or params.binarization == "per_epoch":
                reader = ImageReader(binarize(train_images, params.binarization, seed, epoch), device)
            numbers = {"epoch": epoch, **loop.train_epoch(reader, epoch, bar), **loop.validate(validation_reader)}
            rows.append({key: round_number(value) for key, value in numbers.items()})
            if not math.isfinite(rows[-1]["validation_loss"]):
                raise UserError(f"the validation loss is {rows[-1]['validation_loss']} after epoch {epoch}. {_ADVICE}")
            if _best_epoch(rows) == epoch:
                best_weights = copy.deepcopy(loop.optimization.validated.state_dict())
            best = {f"best.{name}": weight for name, weight in best_weights.items()}
            for call in on_epoch:
                call(Progress(rows, loop.optimization.tensors() | best))
    model.load_state_dict(best_weights)
    history = pd.DataFrame(rows).astype({"epoch": int, "skipped_steps": int})
    return TrainingResult(model.cpu().eval(), history, _best_epoch(rows))


class _Loop:
    """An optimisation that is led through epochs."""

    def __init__(
        self,
        model: VAE,
        params: TrainParams,
        num_images: int,
        device: torch.device,
        seed: int,
        workers: Workers = ALONE,
    ) -> None:
        self.params = params
        self.device = device
        self.seed = seed
        self.workers = workers
        self.steps_per_epoch = num_batches(num_images, params.batch_size)
        self.optimization = Optimization(model, params, self.steps_per_epoch, device, workers)

    def train_epoch(self, reader: ImageReader, epoch: int, bar: "tqdm[NoReturn]") -> EpochRow:
        """One pass over all images in a new order; means are over the steps that were taken."""
        optimization = self.optimization
        optimization.model.train()
        order, generator = self._randomness_of(epoch)
        batches = list(index_batches(order.permutation(len(reader)), self.params.batch_size))
        read = reader.read(batch[part] for batch in batches for part in self._parts(len(batch)))
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # reconstruction, KL
        num_taken = torch.zeros((), dtype=torch.float64, device=self.device)  # images of steps that were not skipped
        num_skipped = torch.zeros((), device=self.device)
        largest_norm = torch.zeros((), device=self.device)
        for batch in batches:
            flipped, noise = self._flipped(len(batch), generator), self._noise(len(batch), generator)
            parts = [(self._flip(next(read), flipped[part]), noise[part]) for part in self._parts(len(batch))]
            terms, norm, skipped = optimization.take_step(parts, len(batch))
            totals += torch.where(skipped, 0.0, terms)
            num_taken += torch.where(skipped, 0, len(batch))
            num_skipped += skipped
            largest_norm = torch.where(skipped, largest_norm, torch.maximum(largest_norm, norm))
            bar.update(len(batch))
            if optimization.step % REPORT_EVERY == 0 or optimization.step % self.steps_per_epoch == 0:
                self._check_skipped(int(num_skipped))
                row = self._row("train", self.workers.total(totals), float(num_taken))
                bar.set_postfix({key.removeprefix("train_"): f"{value:.1f}" for key, value in row.items()})
        return {
            **row,
            "learning_rate": optimization.learning_rate(optimization.step - 1),
            "largest_gradient_norm": float(largest_norm),
            "skipped_steps": float(num_skipped),
        }

    @torch.no_grad()
    def validate(self, reader: ImageReader) -> EpochRow:
        """Means over all images, in evaluation mode, with the same noise every time."""
        objective = self.optimization.validation_objective.eval()
        generator = torch.Generator(self.device).manual_seed(self.seed)
        batches = list(index_batches(np.arange(len(reader)), self.params.batch_size))
        read = reader.read(batch[part] for batch in batches for part in self._parts(len(batch)))
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            noise = self._noise(len(batch), generator)
            for part in self._parts(len(batch)):
                totals += objective(next(read), noise[part])
        return self._row("validation", self.workers.total(totals), len(reader))

    def _parts(self, num_images: int) -> list[slice]:
        """What this process computes of a batch, one after the other."""
        return [self.workers.share(*bounds) for bounds in parts_of(num_images, self.params.micro_batch_size)]

    def _randomness_of(self, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
        """Generators of the order and of the noise; dropout draws from the global one, which is seeded too.

        An epoch's randomness depends on its number alone, so that a training can go on from any of them.
        """
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed + self.workers.rank)
        return np.random.default_rng(seed), torch.Generator(self.device).manual_seed(seed)

    def _noise(self, num_images: int, generator: torch.Generator) -> Tensor:
        latent_dim = self.optimization.model.params.latent_dim
        return torch.randn(num_images, latent_dim, generator=generator, device=self.device)

    def _flipped(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Which images are seen as in a mirror: every other by chance, as a face may look left as well as right."""
        if not self.params.horizontal_flip:
            return torch.zeros(num_images, dtype=torch.bool, device=self.device)
        return torch.rand(num_images, generator=generator, device=self.device) < 0.5

    def _flip(self, images: Tensor, flipped: Tensor) -> Tensor:
        if not self.params.horizontal_flip:
            return images
        return torch.where(flipped[:, None, None, None], images.flip(3), images)

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


_ADVICE = (
    "Training has become unstable: lower train.learning_rate, raise train.learning_rate_warmup_steps or "
    "train.kl_warmup_epochs, or set train.precision to float32."
)
