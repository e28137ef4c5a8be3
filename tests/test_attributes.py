from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from facevae.attributes import (
    area_under_curve,
    auc_table,
    direction_of,
    edit,
    fit_directions,
    load_directions,
    save_directions,
)
from facevae.errors import UserError

GENERATOR = np.random.default_rng(0)
ATTRIBUTES = pd.DataFrame(
    {"Smiling": GENERATOR.integers(0, 2, 300), "Male": GENERATOR.integers(0, 2, 300), "Human": np.ones(300, int)}
)
SHIFTS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
NOISE = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
MEANS = torch.tensor(ATTRIBUTES[["Smiling", "Male"]].to_numpy(dtype=np.float32, copy=True)) @ SHIFTS + 0.1 * NOISE


def test_a_direction_leads_from_the_mean_without_to_the_mean_with() -> None:
    directions = fit_directions(MEANS, ATTRIBUTES)
    assert set(directions) == {"Smiling", "Male"}  # all are human
    without = MEANS[(ATTRIBUTES["Smiling"] == 0).to_list()].mean(0)
    with_it = MEANS[(ATTRIBUTES["Smiling"] == 1).to_list()].mean(0)
    torch.testing.assert_close(edit(without, directions["Smiling"], 1.0), with_it)
    torch.testing.assert_close(directions["Male"], SHIFTS[1], atol=0.4, rtol=0)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_scikit_learn(ties: bool) -> None:
    labels = GENERATOR.random(200) < 0.3
    scores = GENERATOR.normal(size=200) + labels
    if ties:
        scores = scores.round()
    assert area_under_curve(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_the_auc_table_finds_what_separates() -> None:
    directions = {"Smiling": SHIFTS[0], "Male": torch.tensor([0.0, 0.0, 1.0])}
    table = auc_table(MEANS, ATTRIBUTES, directions)
    assert table["attribute"].to_list() == ["Smiling", "Male"]
    assert table["auc"].iloc[0] > 0.99
    assert abs(table["auc"].iloc[1] - 0.5) < 0.15
    assert (table["num_with"] + table["num_without"] == 300).all()


def test_directions_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    directions = fit_directions(MEANS, ATTRIBUTES)
    save_directions(path, directions, fingerprint="a")
    loaded = load_directions(path, fingerprint="a")
    assert all(torch.equal(loaded[name], directions[name]) for name in directions)
    with pytest.raises(UserError, match="belongs to another model"):
        load_directions(path, fingerprint="b")


def test_a_set_without_attributes_has_no_directions(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    save_directions(path, fit_directions(MEANS, pd.DataFrame(index=range(300))), fingerprint="a")
    loaded = load_directions(path, fingerprint="a")
    assert loaded == {}
    with pytest.raises(UserError, match="no attribute 'Smiling'; there are: none"):
        direction_of(loaded, "Smiling")


def test_an_unknown_attribute_is_told_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no attribute 'Smile'; there are: Male, Smiling"):
        direction_of(fit_directions(MEANS, ATTRIBUTES), "Smile")
