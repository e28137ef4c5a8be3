"""Equal images within a split and across splits, and images of a single colour."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from facevae.data.prepared import SPLITS, SplitName


class Sameness:
    """Remembers a digest of the pixels of each prepared image."""

    def __init__(self) -> None:
        self._digests: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        self._homes: dict[bytes, str] = {}
        self._plain: dict[str, bool] = dict.fromkeys(SPLITS, True)

    def add(self, images: NDArray[np.uint8], splits: Iterable[str], *, keep_together: bool) -> list[str]:
        """Take in images (N, height, width, channels) and the splits that they were drawn into.

        Returns
        -------
        list of str
            The split of each image: its own or, if equal images are kept together, that of the first equal image.
        """
        final = []
        for image, drawn in zip(images, splits, strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(image).data).digest()[:16]
            home = self._homes.setdefault(digest, drawn)
            split = home if keep_together else drawn
            self._digests[split].append(digest)
            self._plain[split] = self._plain[split] and bool((image == image[0, 0]).all())
            final.append(split)
        return final

    def num_distinct(self, split: str) -> int:
        """How many images of a split differ from each other."""
        return len(set(self._digests[split]))

    def is_plain(self, split: str) -> bool:
        """Whether every image of a split is of a single colour."""
        return self._plain[split]

    def across_splits(self) -> dict[SplitName, int]:
        """How many images of each split equal one of an earlier split, in the order of `SPLITS`; without zeros."""
        seen: set[bytes] = set()
        counts: dict[SplitName, int] = {}
        for split in SPLITS:
            counts[split] = sum(digest in seen for digest in self._digests[split])
            seen.update(self._digests[split])
        return {split: count for split, count in counts.items() if count}
