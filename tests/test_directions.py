from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from facevae.errors import UserError
from facevae.evaluate.directions import (
    DirectionsHeader,
    FittedDirections,
    auc_table,
    direction_of,
    edit,
    fit_directions,
    load_directions,
    save_directions,
)
from facevae.storage.tensors import write_tensors

GENERATOR = np.random.default_rng(0)
ATTRIBUTES = pd.DataFrame(
    {"Smiling": GENERATOR.integers(0, 2, 300), "Male": GENERATOR.integers(0, 2, 300), "Human": np.ones(300, int)}
)
SHIFTS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
NOISE = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
MEANS = torch.tensor(ATTRIBUTES[["Smiling", "Male"]].to_numpy(dtype=np.float32, copy=True)) @ SHIFTS + 0.1 * NOISE


def test_difference_leads_from_one_mean_to_the_other() -> None:
    directions = fit_directions(MEANS, ATTRIBUTES, 0.3)["difference"]
    assert set(directions) == {"Smiling", "Male"}  # all images are human
    without = MEANS[(ATTRIBUTES["Smiling"] == 0).to_list()].mean(0)
    with_it = MEANS[(ATTRIBUTES["Smiling"] == 1).to_list()].mean(0)
    torch.testing.assert_close(edit(without, directions["Smiling"], 1.0), with_it)
    torch.testing.assert_close(directions["Male"], SHIFTS[1], atol=0.4, rtol=0)


def test_original_subtracts_lambda_times_the_mean_without() -> None:
    direction = fit_directions(MEANS, ATTRIBUTES, 0.3)["original"]["Smiling"]
    has = (ATTRIBUTES["Smiling"] == 1).to_list()
    torch.testing.assert_close(
        direction, MEANS[has].mean(0) - 0.3 * MEANS[(ATTRIBUTES["Smiling"] == 0).to_list()].mean(0)
    )


def test_balanced_and_joint_separate_correlated_attributes() -> None:
    """Most smiling images are male, so a plain difference of means mixes the two attributes."""
    smiling = GENERATOR.random(4000) < 0.5
    table = pd.DataFrame({"Smiling": smiling, "Male": GENERATOR.random(4000) < np.where(smiling, 0.9, 0.1)}).astype(int)
    means = torch.from_numpy(table.to_numpy(dtype=np.float32, copy=True)) @ SHIFTS
    directions = fit_directions(means, table, 1.0)
    assert abs(directions["difference"]["Smiling"][1]) > 2
    for method in ("balanced", "joint"):
        for row, name in enumerate(("Smiling", "Male")):
            torch.testing.assert_close(directions[method][name], SHIFTS[row], atol=0.02, rtol=0)


def test_balanced_counts_negative_correlation_too() -> None:
    generator = np.random.default_rng(1)
    smiling = generator.random(4000) < 0.5
    male = generator.random(4000) < np.where(smiling, 0.1, 0.9)
    table = pd.DataFrame({"Smiling": smiling, "Young": generator.random(4000) < 0.5, "Male": male}).astype(int)
    means = torch.from_numpy(table[["Smiling", "Male"]].to_numpy(dtype=np.float32, copy=True)) @ SHIFTS
    directions = fit_directions(means, table, 1.0)
    torch.testing.assert_close(directions["balanced"]["Smiling"], SHIFTS[0], atol=0.02, rtol=0)


def test_balanced_skips_an_attribute_that_determines_the_other() -> None:
    table = ATTRIBUTES.assign(Glum=1 - ATTRIBUTES["Smiling"])
    directions = fit_directions(MEANS, table, 1.0)
    expected = fit_directions(MEANS, ATTRIBUTES, 1.0)["balanced"]
    torch.testing.assert_close(directions["balanced"]["Smiling"], expected["Smiling"])  # balanced over Male
    torch.testing.assert_close(directions["joint"]["Smiling"], -directions["joint"]["Glum"])


def test_auc_table_ranks_directions_that_separate() -> None:
    noise = torch.tensor([0.0, 0.0, 1.0])
    table = auc_table(
        MEANS,
        ATTRIBUTES,
        {"difference": {"Smiling": noise, "Male": SHIFTS[1]}, "joint": dict.fromkeys(["Smiling", "Male"], SHIFTS[0])},
    )
    assert table["attribute"].to_list() == ["Male", "Smiling"]
    male, smiling = table.to_dict("records")
    assert male["difference"] > 0.99
    assert smiling["joint"] > 0.99
    assert abs(male["joint"] - 0.5) < 0.15
    assert (table["num_with"] + table["num_without"] == 300).all()


def test_saved_directions_load_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    by_method = fit_directions(MEANS, ATTRIBUTES, 0.5)
    save_directions(path, FittedDirections(by_method, "balanced"), fingerprint="a")
    loaded = load_directions(path, fingerprint="a")
    assert loaded.best == "balanced"
    for method, directions in by_method.items():
        assert all(torch.equal(loaded.by_method[method][name], directions[name]) for name in directions)
    with pytest.raises(UserError, match="belongs to another model"):
        load_directions(path, fingerprint="b")


def test_file_of_an_unknown_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    write_tensors(path, {"Smiling": torch.ones(3)}, DirectionsHeader(fingerprint="a", best="joint"))
    with pytest.raises(UserError, match="is not of this version of facevae. Run `dvc repro evaluate`"):
        load_directions(path, fingerprint="a")


def test_set_without_attributes_has_no_directions(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    by_method = fit_directions(MEANS, pd.DataFrame(index=range(300)), 0.5)
    save_directions(path, FittedDirections(by_method, "difference"), fingerprint="a")
    loaded = load_directions(path, fingerprint="a").by_method["difference"]
    assert loaded == {}
    with pytest.raises(UserError, match="unknown attribute 'Smiling'. Known attributes: none"):
        direction_of(loaded, "Smiling")


def test_unknown_attribute_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown attribute 'Smile'. Known attributes: Male, Smiling"):
        direction_of(fit_directions(MEANS, ATTRIBUTES, 1.0)["joint"], "Smile")
