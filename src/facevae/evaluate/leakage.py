"""Leakage of an edit: changes of other attributes beyond those that the data ties to the edited one.

Some changes belong to an edit. Blond hair on a bald head means that it is no longer bald, and a hat hides the hair.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def tied_changes(attributes: pd.DataFrame, edited: str, judged: Sequence[str]) -> Tensor:
    """P(judged | edited) - P(judged | not edited), the difference between training images with and without `edited`.

    If edited images are to have an attribute as often as images that have `edited` by nature, it must change in this
    share of them, and in no more.

    Parameters
    ----------
    attributes
        Values 0 and 1, one row a training image. `edited` must vary.
    judged
        The attributes in the order of the result, (num_judged,) in [-1, 1].
    """
    has = attributes[edited].to_numpy(dtype=bool)
    values = attributes[list(judged)].to_numpy(dtype=np.float64)
    return torch.from_numpy(values[has].mean(0) - values[~has].mean(0))


def leakage(changes: Tensor, tied: Tensor) -> Tensor:
    """The share of images in which an attribute changes beyond what is tied to the edit, for each attribute.

    Of the changes towards the tied one, its share |`tied`| is free. All other changes count.

    Parameters
    ----------
    changes
        (N, num_judged): 1 where an edit adds an attribute, -1 where it removes it, 0 where it leaves it. For images
        that lose the edited attribute, the sign is reversed.
    tied
        The result of `tied_changes`.
    """
    share = (changes != 0).double().mean(0)
    share_towards = (changes * tied > 0).double().mean(0)
    return share - torch.minimum(share_towards, tied.abs())


def beyond(change: Tensor, tied: Tensor) -> Tensor:
    """A mean change of probability without its part towards the tied change, at most as large as that; any shape."""
    return change - change.clamp(tied.clamp(max=0), tied.clamp(min=0))
