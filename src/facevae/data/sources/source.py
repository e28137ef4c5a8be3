"""The interface of every source of raw images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Source:
    """Raw images with their names, attributes and, if there is one, their official split.

    Attributes
    ----------
    names
        One unique name for each image; `data.num_images` takes images from the front.
    attributes
        One row for each image, in the order of `names`, with values 0 or 1 as uint8. Without attributes there are no
        columns.
    read
        Returns the image at a position, or raises `BadImageError`. It can be pickled for other processes.
    partition
        "train", "validation" or "test" for each image, or None if the source has no official split.
    left_out
        Number of files by the reason why they are no images of the source.
    """

    names: Sequence[str]
    attributes: "pd.DataFrame"
    read: Callable[[int], Image.Image]
    partition: Sequence[str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
