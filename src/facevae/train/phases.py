"""The phases of a training: the VAE itself, then the sharpening of its decoder if the params ask for it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from facevae.config.checks import warn_of_large_batch
from facevae.config.schema import SharpenParams
from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.train.loop import Progress, Setup, TrainingResult, best_epoch, history_of, run_epochs, train
from facevae.train.sharpening import Sharpening
from facevae.train.step import with_prefix


def train_and_sharpen(
    model: VAE,
    setup: Setup,
    sharpening: SharpenParams,
    *,
    start: Progress | None = None,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
) -> TrainingResult:
    """Train a VAE, then sharpen the decoder of its best epoch. The epochs of the second phase continue the first's.

    All arguments but `sharpening` are those of `loop.train`, as are the errors.

    Raises
    ------
    UserError
        Several processes are to sharpen.
    """
    if not sharpening.epochs:
        return train(model, setup, start=start, on_epoch=on_epoch)
    if setup.workers.size > 1:
        raise UserError(
            f"sharpen.epochs: {sharpening.epochs}, but {setup.workers.size} processes train together, which cannot "
            "sharpen. Set it to 0, or train in one process (train.launcher: python)"
        )
    if start is None or len(start.rows) <= setup.params.epochs:
        latest: deque[Progress] = deque(maxlen=1)
        train(model, setup, start=start, on_epoch=[*on_epoch, latest.append])
        [start] = latest
    return sharpen(model, setup, sharpening, start=start, on_epoch=on_epoch)


def sharpen(
    model: VAE,
    setup: Setup,
    sharpening: SharpenParams,
    *,
    start: Progress,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
) -> TrainingResult:
    """Sharpen the decoder of the best epoch of `start`: the end of a training, or an epoch of its sharpening.

    The other arguments and the errors are those of `loop.train`.
    """
    warn_of_large_batch("sharpen.batch_size", sharpening.batch_size, len(setup.train_images))
    whole = {"batch_size": sharpening.batch_size, "micro_batch_size": None}  # a step compares all images of its batch
    setup = replace(setup, params=setup.params.model_copy(update=whole))
    params, device = setup.params, setup.device
    best_weights = with_prefix(start.tensors, "best.")
    model.load_state_dict(best_weights)
    optimization = Sharpening(model.to(device), sharpening, params, setup.steps_per_epoch, device, seed=setup.seed)
    rows, previews = list(start.rows), list(start.previews)
    if (num_done := len(rows) - params.epochs) > 0:
        optimization.restore(start.tensors, num_done * setup.steps_per_epoch)
        for call in on_epoch:
            call(start)
    best = {f"best.{name}": weight for name, weight in best_weights.items()}
    epochs = range(len(rows) + 1, params.epochs + sharpening.epochs + 1)
    for _ in run_epochs(optimization, epochs, setup, rows, previews, desc="sharpen"):
        for call in on_epoch:
            call(Progress(rows, optimization.tensors() | best, previews))
    model.load_state_dict(optimization.validated.state_dict())
    return TrainingResult(model.cpu().eval(), history_of(rows), best_epoch(rows[: params.epochs]))
