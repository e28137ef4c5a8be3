"""One pass over the images: a step for each batch, or a validation."""

from collections.abc import Iterable, Sequence
from typing import NoReturn, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from facevae.config.schema import TrainParams
from facevae.errors import UserError
from facevae.model.vae import VAE
from facevae.train.batches import Batch
from facevae.train.distributed import ALONE, Workers
from facevae.train.step import Objective, StepReport

REPORT_EVERY = 20  # steps between looks at numbers that live on the device

EpochRow = dict[str, float]


class Steps(Protocol):
    """What takes the steps: `step.Optimization` or `sharpening.Sharpening`.

    Attributes
    ----------
    further_losses
        The names of what its steps report beside reconstruction and KL.
    advice
        What to change if its steps explode.
    """

    model: VAE
    validated: VAE
    validation_objective: Objective
    params: TrainParams
    device: torch.device
    steps_per_epoch: int
    step: int

    @property
    def further_losses(self) -> Sequence[str]: ...
    @property
    def advice(self) -> str: ...

    def take_step(self, parts: Sequence[tuple[Tensor, Tensor]], num_images: int) -> StepReport: ...
    def learning_rate(self, step: int) -> float: ...


def train_epoch(optimization: Steps, batches: Iterable[Batch], workers: Workers, bar: "tqdm[NoReturn]") -> EpochRow:
    """Take a step for each batch. Means are over the images of the steps that were not skipped."""
    optimization.model.train()
    device = optimization.device
    num_terms = 2 + len(optimization.further_losses)  # reconstruction, KL
    totals = torch.zeros(num_terms, dtype=torch.float64, device=device)
    num_taken = torch.zeros((), dtype=torch.float64, device=device)  # images of steps that were not skipped
    num_skipped = torch.zeros((), device=device)
    largest_norm = torch.zeros((), device=device)
    for batch in batches:
        terms, norm, skipped = optimization.take_step(batch.parts, batch.num_images)
        totals += torch.where(skipped, 0.0, terms)
        num_taken += torch.where(skipped, 0, batch.num_images)
        num_skipped += skipped
        largest_norm = torch.where(skipped, largest_norm, torch.maximum(largest_norm, norm))
        bar.update(batch.num_images)
        if optimization.step % REPORT_EVERY == 0 or optimization.step % optimization.steps_per_epoch == 0:
            _check_skipped(int(num_skipped), optimization)
            means = (workers.total(totals) / float(num_taken)).tolist()
            row = _row("train", means, optimization.params.beta)
            bar.set_postfix({key.removeprefix("train_"): f"{value:.1f}" for key, value in row.items()})
    return {
        **row,
        **dict(zip(optimization.further_losses, means[2:], strict=True)),
        "learning_rate": optimization.learning_rate(optimization.step - 1),
        "largest_gradient_norm": float(largest_norm),
        "skipped_steps": float(num_skipped),
    }


@torch.no_grad()
def validate(optimization: Steps, batches: Iterable[Batch], workers: Workers = ALONE) -> EpochRow:
    """Measure the means over all images in evaluation mode."""
    objective = optimization.validation_objective.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=optimization.device)
    num_images = 0
    for batch in batches:
        for images, noise in batch.parts:
            totals += objective(images, noise)
        num_images += batch.num_images
    return _row("validation", (workers.total(totals) / num_images).tolist(), optimization.params.beta)


def _row(split: str, means: Sequence[float], beta: float) -> EpochRow:
    """Mean reconstruction and KL, the first two means, and the loss: their sum with the KL at its full weight."""
    reconstruction, kl = means[:2]
    return {
        f"{split}_loss": reconstruction + beta * kl,
        f"{split}_reconstruction": reconstruction,
        f"{split}_kl": kl,
    }


def _check_skipped(num_skipped: int, optimization: Steps) -> None:
    params = optimization.params
    if num_skipped > params.max_skipped_steps or num_skipped == optimization.steps_per_epoch:
        raise UserError(
            f"training stopped at step {optimization.step}: {num_skipped} steps of one epoch had a gradient that was "
            f"not finite or longer than train.skip_gradient_norm {params.skip_gradient_norm}. "
            f"train.max_skipped_steps allows {params.max_skipped_steps} skipped steps, and never all. "
            f"{optimization.advice}"
        )
