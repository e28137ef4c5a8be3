"""The learning rate and the weight of the KL term over the course of a training."""

import math

from facevae.config.schema import TrainParams


def learning_rate_at(params: TrainParams, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to zero."""
    warmup = min(1.0, (step + 1) / (params.learning_rate_warmup_steps + 1))
    decay = 0.5 * (1 + math.cos(math.pi * step / num_steps)) if params.learning_rate_decay == "cosine" else 1.0
    return params.learning_rate * warmup * decay


def kl_weight_at(params: TrainParams, epochs: float) -> float:
    """The weight of the KL term after so many epochs (fractions count): it rises from 0 to beta during the warm-up."""
    return params.beta * min(1.0, epochs / params.kl_warmup_epochs) if params.kl_warmup_epochs else params.beta
