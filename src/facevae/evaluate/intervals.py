"""Intervals of measured shares."""

import math

NORMAL_QUANTILE = 1.959964  # of 97.5 %, so that intervals cover 95 %


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """95 % interval of a share, within [0, 1] (Wilson 1927, "Probable inference, the law of succession").

    Unlike a bootstrap or the normal approximation, it has a width even if all trials succeed, or none.
    """
    share, ratio = num_successes / num_trials, NORMAL_QUANTILE**2 / num_trials
    centre = share + ratio / 2
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    return max(0.0, (centre - half) / (1 + ratio)), min(1.0, (centre + half) / (1 + ratio))
