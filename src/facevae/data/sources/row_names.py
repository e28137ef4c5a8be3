"""Find the row of each image in a table that spells some names in another way."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from facevae.data.image_file import SUFFIXES
from facevae.errors import UserError

MAX_SHOWN = 10


def find_rows(index: pd.Index, names: Sequence[str], path: Path) -> NDArray[np.intp]:
    """The position in `index` of each of the names.

    A name that is not there as it stands is found as `./a.jpg`, as `sub\\a.jpg` or without its suffix, if only one row
    and only one image fit.

    Raises
    ------
    UserError
        A name has no row or several, or a row has several names. The message shows names of both kinds.
    """
    positions: NDArray[np.intp] = index.get_indexer(pd.Index(names, dtype=object))
    for spell in (plain, without_suffix):
        if (positions < 0).any():
            images = _by_spelling(names, np.flatnonzero(positions < 0), spell)
            rows = _by_spelling(index, np.setdiff1d(np.arange(len(index)), positions), spell)
            for spelling in images.keys() & rows.keys():
                if len(images[spelling]) > 1 or len(rows[spelling]) > 1:
                    raise UserError(
                        f"{path}: the row(s) {_listed(index, rows[spelling])} and the image(s) "
                        f"{_listed(names, images[spelling])} could belong together: give the table whole names"
                    )
                positions[images[spelling]] = rows[spelling]
    missing = [int(image) for image in np.flatnonzero(positions < 0)]
    if missing:
        others = [int(row) for row in np.setdiff1d(np.arange(len(index)), positions)]
        own = f" (other names there: {_listed(index, others)})" if others else ""
        raise UserError(
            f"{path} has no row for {len(missing)} of {len(names)} images: {_listed(names, missing)}{own}; add the "
            "rows or remove the images"
        )
    return positions


def plain(name: str) -> str:
    """A relative path with forward slashes, without "./", and with composed characters, which macOS takes apart."""
    return unicodedata.normalize("NFC", PurePosixPath(name.strip().replace("\\", "/")).as_posix())


def without_suffix(name: str) -> str:
    """The plain name without the suffix of an image."""
    path = PurePosixPath(plain(name))
    return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else path.as_posix()


def _by_spelling(
    names: Sequence[str] | pd.Index, positions: NDArray[np.intp], spell: Callable[[str], str]
) -> dict[str, list[int]]:
    found = defaultdict(list)
    for position in map(int, positions):
        found[spell(names[position])].append(position)
    return found


def _listed(names: Sequence[str] | pd.Index, positions: Sequence[int]) -> str:
    return ", ".join(names[i] for i in positions[:MAX_SHOWN]) + (", ..." if len(positions) > MAX_SHOWN else "")
