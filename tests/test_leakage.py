"""Leakage of editors whose effect is known: of a table, and of avatars."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from facevae.data.sources import avatars
from facevae.data.sources.avatars import Avatar, attributes_of, draw_avatar
from facevae.evaluate.leakage import beyond, leakage, tied_changes

# Of 8 images with a hat none is bald and 4 smile. Of 8 without one, 6 are bald and 4 smile.
TABLE = pd.DataFrame(
    {
        "Hat": [1] * 8 + [0] * 8,
        "Bald": [0] * 8 + [1] * 6 + [0] * 2,
        "Smiling": [0, 1] * 8,
    }
)
OTHERS = ["Bald", "Smiling"]


def test_tied_changes_are_differences_of_shares() -> None:
    assert tied_changes(TABLE, "Hat", OTHERS).tolist() == [-0.75, 0]
    assert tied_changes(TABLE, "Bald", ["Hat"]).tolist() == [0 - 8 / 10]


def changes_of(*rows: tuple[int, int]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(-1, 0)] * 6 + [(0, 0)] * 2, [0, 0]),  # a perfect editor adds hats to the 8 images: 6 were bald
        ([(0, 0)] * 8, [0, 0]),  # an editor that adds hats without hiding the bald head
        ([(-1, 0)] * 8, [0.25, 0]),  # more lost than there should be
        ([(-1, 0)] * 6 + [(1, 0)] * 2, [0.25, 0]),  # a change away from the tied one
        ([(1, 0)] * 8, [1, 0]),
        ([(-1, 1)] * 6 + [(0, 0)] * 2, [0, 0.75]),  # smiles are not tied to hats
        ([(-1, 1)] * 3 + [(0, -1)] * 3 + [(0, 0)] * 2, [0, 0.75]),
    ],
)
def test_only_changes_beyond_the_tied_share_are_leakage(changes: list[tuple[int, int]], expected: list[float]) -> None:
    assert leakage(changes_of(*changes), tied_changes(TABLE, "Hat", OTHERS)).tolist() == expected


@pytest.mark.parametrize(
    ("change", "tied", "expected"),
    [(-0.5, -0.7, 0), (-0.9, -0.7, -0.2), (0.2, -0.7, 0.2), (0.8, 0.5, 0.3), (-0.3, 0, -0.3)],
)
def test_a_mean_change_counts_beyond_the_tied_one(change: float, tied: float, expected: float) -> None:
    assert float(beyond(torch.tensor(change), torch.tensor(tied))) == pytest.approx(expected, abs=1e-6)


def redrawn(avatar: Avatar, edited: str, generator: np.random.Generator) -> Avatar:
    """The avatar with an attribute changed: what must change is drawn as for a new face that has it."""
    had = attributes_of(avatar)[edited]
    while True:
        new = draw_avatar(int(generator.integers(2**32)), 0)
        if attributes_of(new)[edited] == had:
            continue
        has_hair, gets_hair = (face.top in avatars.STRAIGHT_HAIR | avatars.WAVY_HAIR for face in (avatar, new))
        top = avatar.top if has_hair and gets_hair else new.top
        return replace(avatar, top=top, hair_colour=new.hair_colour)


@pytest.mark.parametrize("edited", ["Blond_Hair", "Wearing_Hat"])
def test_a_perfect_editor_of_avatars_leaks_nothing(edited: str) -> None:
    generator = np.random.default_rng(0)
    faces = [draw_avatar(1, index) for index in range(3000)]
    table = pd.DataFrame([attributes_of(face) for face in faces]).astype(int)
    others = [str(name) for name in table if name != edited]
    is_added = table[edited].to_numpy() == 0
    chosen = np.concatenate([np.flatnonzero(group)[:300] for group in (is_added, ~is_added)])
    after = pd.DataFrame([attributes_of(redrawn(faces[index], edited, generator)) for index in chosen]).astype(int)
    difference = after[others].to_numpy() - table[others].to_numpy()[chosen]
    changes = torch.from_numpy(difference * np.where(is_added[chosen], 1, -1)[:, None])
    share_changed = (changes != 0).double().mean()
    leaked = leakage(changes, tied_changes(table, edited, others)).mean()
    assert share_changed > 0.08  # what was called leakage
    assert leaked < 0.02  # eyebrows, which some hats and some hair cover, change both ways
