"""The training loop. It knows nothing of files, DVC or MLflow."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from facevae.config.checks import warn_of_large_batch
from facevae.config.schema import TrainParams
from facevae.device import memory_format
from facevae.errors import UserError
from facevae.model.binarization import binarize
from facevae.model.vae import VAE, largest_map_bytes
from facevae.storage.tables import round_number
from facevae.train.batches import Batches, ImageReader, num_batches
from facevae.train.distributed import ALONE, Workers
from facevae.train.epoch import EpochRow, Steps, train_epoch, validate
from facevae.train.previews import Previewer, Previews
from facevae.train.step import Optimization, with_prefix


@dataclass(frozen=True)
class Setup:
    """The images and settings that all phases of a training share.

    Attributes
    ----------
    train_images, validation_images
        Shape (N, height, width, channels). Memory maps work.
    params
        The objective and its optimisation.
    device
        Where to train: the result of `set_up_device`.
    seed
        Determines the order of the images, mirroring, noise and dropout of each epoch.
    workers
        The processes that train together.
    draw
        Whether the first process draws previews of each epoch.
    """

    train_images: NDArray[np.uint8]
    validation_images: NDArray[np.uint8]
    params: TrainParams
    device: torch.device
    _: KW_ONLY
    seed: int
    workers: Workers = ALONE
    draw: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(len(self.train_images), self.params.batch_size)


@dataclass(frozen=True)
class Progress:
    """The state of a training at the end of an epoch, complete enough to continue from it.

    Attributes
    ----------
    rows
        The history so far, one row an epoch.
    tensors
        By name: the weights, their average, the optimisers' moments and the best epoch's weights. They are not copies:
        use them before training goes on.
    previews
        The pictures of each epoch, if they are drawn.
    """

    rows: list[EpochRow]
    tensors: dict[str, Tensor]
    previews: list[Previews] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, in evaluation mode and on the CPU, with the weights of its best epoch.

    `history` has one row an epoch. `best_epoch`, counted from 1, has the lowest validation loss. After sharpening the
    weights are those of the last epoch, and `best_epoch` is that of the training before.
    """

    model: VAE
    history: pd.DataFrame
    best_epoch: int

    def summary(self) -> dict[str, float]:
        """Losses of the best epoch, and the number of steps skipped in all epochs."""
        best = self.history.iloc[self.best_epoch - 1]
        return {
            "best_epoch": self.best_epoch,
            "best_train_loss": float(best["train_loss"]),
            "best_validation_loss": float(best["validation_loss"]),
            "total_skipped_steps": int(self.history["skipped_steps"].sum()),
        }


def train(
    model: VAE, setup: Setup, *, start: Progress | None = None, on_epoch: Sequence[Callable[[Progress], None]] = ()
) -> TrainingResult:
    """Train a VAE and keep the weights of its best epoch.

    Parameters
    ----------
    model
        The model with its initial weights. It is trained in place.
    setup
        The same in all processes that train together, except for their rank.
    start
        Where a training with the same setup stopped. It continues to the same result. None: start anew. With several
        processes, the first one's counts.
    on_epoch
        Called after each epoch, and with `start` before the first.

    Raises
    ------
    UserError
        Too many steps were skipped, or the validation loss is not finite. The message says what to change.
    """
    params, device, workers = setup.params, setup.device, setup.workers
    model.set_memory_format(memory_format(device, largest_map_bytes(model.params, model.image_size)))
    if workers.leads:
        warn_of_large_batch("train.batch_size", params.batch_size, len(setup.train_images))
    optimization = Optimization(model.to(device), params, setup.steps_per_epoch, device, workers)
    start = workers.from_leader(start)
    rows, previews, best_weights = [], [], model.state_dict()
    if start is not None:
        rows, previews = list(start.rows), list(start.previews)
        best_weights = with_prefix(start.tensors, "best.")
        optimization.restore(start.tensors, len(rows) * setup.steps_per_epoch)
        for call in on_epoch:
            call(start)
    epochs = range(len(rows) + 1, params.epochs + 1)
    for epoch in run_epochs(optimization, epochs, setup, rows, previews, desc="train"):
        if best_epoch(rows) == epoch:
            best_weights = copy.deepcopy(optimization.validated.state_dict())
        best = {f"best.{name}": weight for name, weight in best_weights.items()}
        for call in on_epoch:
            call(Progress(rows, optimization.tensors() | best, previews))
    model.load_state_dict(best_weights)
    return TrainingResult(model.cpu().eval(), history_of(rows), best_epoch(rows))


def run_epochs(
    optimization: Steps, epochs: range, setup: Setup, rows: list[EpochRow], previews: list[Previews], *, desc: str
) -> Iterator[int]:
    """Yield the number of each epoch once it has ended, when `rows`, and `previews` if drawn, have one entry more.

    `desc` names the bar of progress.

    Raises
    ------
    UserError
        Too many steps were skipped, or the validation loss is not finite. The message says what to change.
    """
    params, seed, device, workers = setup.params, setup.seed, setup.device, setup.workers
    batches = Batches(params, optimization.model.params.latent_dim, seed, device, workers)
    num_images, num_done = ((epoch - 1) * len(setup.train_images) for epoch in (epochs.stop, epochs.start))
    hidden = None if workers.leads else True  # None: hidden unless there is a terminal
    validation_images = binarize(setup.validation_images, params.binarization, seed)
    reader, validation_reader = None, ImageReader(validation_images, device)
    previewer = Previewer(validation_images, batches.latent_dim, seed)
    with tqdm(total=num_images, initial=num_done, desc=desc, unit="image", disable=hidden) as bar:
        for epoch in epochs:
            if reader is None or params.binarization == "per_epoch":
                reader = ImageReader(binarize(setup.train_images, params.binarization, seed, epoch), device)
            numbers = {
                "epoch": epoch,
                **train_epoch(optimization, batches.of_epoch(reader, epoch), workers, bar),
                **validate(optimization, batches.for_validation(validation_reader), workers),
            }
            rows.append({key: round_number(value) for key, value in numbers.items()})
            if not math.isfinite(loss := rows[-1]["validation_loss"]):
                raise UserError(f"the validation loss is {loss} after epoch {epoch}. {optimization.advice}")
            if setup.draw and workers.leads:
                previews.append(previewer.draw(optimization.validated))
            yield epoch


def history_of(rows: Sequence[EpochRow]) -> pd.DataFrame:
    """The history as a table, one row an epoch."""
    return pd.DataFrame(rows).astype({"epoch": int, "skipped_steps": int})


def best_epoch(rows: list[EpochRow]) -> int:
    """The first epoch with the lowest validation loss, counted from 1."""
    losses = [row["validation_loss"] for row in rows]
    return 1 + losses.index(min(losses))
