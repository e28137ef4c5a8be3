"""What every source of raw images offers to the prepare stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from PIL import Image


@dataclass(frozen=True)
class Source:
    """Raw images by position, with what is known of each.

    Attributes
    ----------
    names
        One for each image, all different, in the order in which images are taken.
    attributes
        One row for each image, in the order of `names`; values 0 or 1, uint8; no columns where nothing is known.
    read
        Gives the image at a position, or raises `BadImageError`. It can be pickled: processes share the work.
    partition
        "train", "validation" or "test" for each image, where the source has a partition of its own.
    """

    names: Sequence[str]
    attributes: pd.DataFrame
    read: Callable[[int], Image.Image]
    partition: Sequence[str] | None = None
