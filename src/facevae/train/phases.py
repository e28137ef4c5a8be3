"""The phases of a training: the VAE itself, then the sharpening of its decoder if the params ask for it."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from facevae.config.schema import SharpenParams, TrainParams
from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.train.batches import Batches, num_batches
from facevae.train.distributed import ALONE, Workers
from facevae.train.loop import Progress, TrainingResult, best_epoch, history_of, run_epochs, train
from facevae.train.sharpening import Sharpening
from facevae.train.step import with_prefix


def train_and_sharpen(
    model: VAE,
    train_images: NDArray[np.uint8],
    validation_images: NDArray[np.uint8],
    params: TrainParams,
    sharpening: SharpenParams,
    device: torch.device,
    *,
    seed: int,
    start: Progress | None = None,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
    workers: Workers = ALONE,
    draw: bool = False,
) -> TrainingResult:
    """Train a VAE, then sharpen the decoder of its best epoch. The epochs of the second phase continue the first's.

    All arguments but `sharpening` are those of `loop.train`, as are the errors.

    Raises
    ------
    UserError
        Several processes are to sharpen.
    """
    fit = partial(train, model, train_images, validation_images, params, device, seed=seed, draw=draw)
    if not sharpening.epochs:
        return fit(start=start, on_epoch=on_epoch, workers=workers)
    if workers.size > 1:
        raise UserError(
            f"sharpen.epochs: {sharpening.epochs}, but {workers.size} processes train together, which cannot sharpen. "
            "Set it to 0, or train in one process (train.launcher: python)"
        )
    if start is None or len(start.rows) <= params.epochs:
        latest: deque[Progress] = deque(maxlen=1)
        fit(start=start, on_epoch=[*on_epoch, latest.append])
        [start] = latest
    images = train_images, validation_images
    return sharpen(model, *images, params, sharpening, device, seed=seed, start=start, on_epoch=on_epoch, draw=draw)


def sharpen(
    model: VAE,
    train_images: NDArray[np.uint8],
    validation_images: NDArray[np.uint8],
    params: TrainParams,
    sharpening: SharpenParams,
    device: torch.device,
    *,
    seed: int,
    start: Progress,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
    draw: bool = False,
) -> TrainingResult:
    """Sharpen the decoder of the best epoch of `start`: the end of a training, or an epoch of its sharpening.

    The other arguments and the errors are those of `loop.train`.
    """
    best_weights = with_prefix(start.tensors, "best.")
    model.load_state_dict(best_weights)
    steps_per_epoch = num_batches(len(train_images), params.batch_size)
    optimization = Sharpening(model.to(device), sharpening, params, steps_per_epoch, device, seed=seed)
    rows, previews = list(start.rows), list(start.previews)
    if (num_done := len(rows) - params.epochs) > 0:
        optimization.restore(start.tensors, num_done * steps_per_epoch)
        for call in on_epoch:
            call(start)
    batches = Batches(params, model.params.latent_dim, seed, device)
    best = {f"best.{name}": weight for name, weight in best_weights.items()}
    epochs = range(len(rows) + 1, params.epochs + sharpening.epochs + 1)
    for _ in run_epochs(
        optimization, epochs, train_images, validation_images, batches, rows, previews, desc="sharpen", draw=draw
    ):
        for call in on_epoch:
            call(Progress(rows, optimization.tensors() | best, previews))
    model.load_state_dict(optimization.validated.state_dict())
    return TrainingResult(model.cpu().eval(), history_of(rows), best_epoch(rows[: params.epochs]))
