"""The learning rate and the weight of the KL term over the course of a training."""

import math

from facevae.config.schema import TrainParams


def learning_rate_factor(params: TrainParams, step: int, num_steps: int) -> float:
    """What to multiply learning rates by in a step, counted from 0: a linear warm-up, then 1 or half a cosine to 0."""
    decay = half_cosine(step, num_steps) if params.learning_rate_decay == "cosine" else 1.0
    return warmup(step, params.learning_rate_warmup_steps) * decay


def warmup(step: int, num_warmup_steps: int) -> float:
    """A factor that rises linearly to 1 in so many steps."""
    return min(1.0, (step + 1) / (num_warmup_steps + 1))


def half_cosine(step: int, num_steps: int) -> float:
    """A factor that falls from 1 to 0 in so many steps."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def kl_weight_at(params: TrainParams, epochs: float) -> float:
    """The weight of the KL term after so many epochs (fractions count): it rises from 0 to beta during the warm-up."""
    return params.beta * min(1.0, epochs / params.kl_warmup_epochs) if params.kl_warmup_epochs else params.beta
