"""One pass over the images: a step for each batch, or a validation."""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from facevae.errors import UserError
from facevae.train.batches import Batch
from facevae.train.distributed import ALONE, Workers
from facevae.train.step import Optimization

REPORT_EVERY = 20  # steps between looks at numbers that live on the device
ADVICE = (
    "Training has become unstable: lower train.learning_rate, raise train.learning_rate_warmup_steps or "
    "train.kl_warmup_epochs, or set train.precision to float32."
)

EpochRow = dict[str, float]


def train_epoch(
    optimization: Optimization, batches: Iterable[Batch], workers: Workers, bar: "tqdm[NoReturn]"
) -> EpochRow:
    """Take a step for each batch. Means are over the images of the steps that were not skipped."""
    optimization.model.train()
    device = optimization.device
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # reconstruction, KL
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
            row = _row("train", workers.total(totals), float(num_taken), optimization.params.beta)
            bar.set_postfix({key.removeprefix("train_"): f"{value:.1f}" for key, value in row.items()})
    return {
        **row,
        "learning_rate": optimization.learning_rate(optimization.step - 1),
        "largest_gradient_norm": float(largest_norm),
        "skipped_steps": float(num_skipped),
    }


@torch.no_grad()
def validate(optimization: Optimization, batches: Iterable[Batch], workers: Workers = ALONE) -> EpochRow:
    """Measure the means over all images in evaluation mode."""
    objective = optimization.validation_objective.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=optimization.device)
    num_images = 0
    for batch in batches:
        for images, noise in batch.parts:
            totals += objective(images, noise)
        num_images += batch.num_images
    return _row("validation", workers.total(totals), num_images, optimization.params.beta)


def _row(split: str, totals: Tensor, num_images: float, beta: float) -> EpochRow:
    """Mean reconstruction and KL, and the loss: their sum with the KL at its full weight."""
    reconstruction, kl = (totals / num_images).tolist()
    return {
        f"{split}_loss": reconstruction + beta * kl,
        f"{split}_reconstruction": reconstruction,
        f"{split}_kl": kl,
    }


def _check_skipped(num_skipped: int, optimization: Optimization) -> None:
    params = optimization.params
    if num_skipped > params.max_skipped_steps or num_skipped == optimization.steps_per_epoch:
        raise UserError(
            f"training stopped at step {optimization.step}: {num_skipped} steps of one epoch had a gradient that was "
            f"not finite or longer than train.skip_gradient_norm {params.skip_gradient_norm}. "
            f"train.max_skipped_steps allows {params.max_skipped_steps} skipped steps, and never all. {ADVICE}"
        )
