import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_params
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn

from facevae.evaluate.directions import Directions, Method
from facevae.evaluate.edits import RANDOM, EditStudy, study_edits
from facevae.evaluate.intervals import wilson_interval
from facevae.evaluate.judge import WIDTHS, Classifier
from facevae.model.vae import Posterior

SIZE = 8
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 2, (60, 2)).astype(bool)


class Swatches(nn.Module):
    """Decode a latent (red, blue, green) to an image of that colour, and encode it: every edit has a known outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.params = small_params().model

    def encode(self, images: Tensor) -> Posterior:
        colour = images.mean((2, 3))
        return Posterior(torch.stack([colour[:, 0], colour[:, 2], colour[:, 1]], 1), torch.zeros(len(images), 3))

    def decode(self, latent: Tensor) -> Tensor:
        colour = torch.stack([latent[:, 0], latent[:, 2], latent[:, 1]], 1).clamp(0, 1)
        return colour[:, :, None, None].expand(-1, 3, SIZE, SIZE)


class Colours(Classifier):
    """An image has the attribute Red or Blue if that channel is above 1/2."""

    def __init__(self) -> None:
        super().__init__(SIZE, 3, ("Red", "Blue"))
        weight = torch.zeros(2, WIDTHS[-1])
        weight[0, 0] = weight[1, 2] = 100.0
        self.logits.weight.data, self.logits.bias.data = weight, torch.full((2,), -50.0)

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.pad(images.mean((2, 3)), (0, WIDTHS[-1] - 3))


def swatches() -> NDArray[np.uint8]:
    """Images of one colour: red and blue are 0.2 or 0.8, green is random below 0.1."""
    red, blue = (np.where(LABELS[:, column], 0.8, 0.2) for column in (0, 1))
    colour = np.stack([red, GENERATOR.random(60) * 0.1, blue], 1)
    return np.broadcast_to((colour * 255).astype(np.uint8)[:, None, None], (60, SIZE, SIZE, 3)).copy()


IMAGES = swatches()
ATTRIBUTES = pd.DataFrame(LABELS.astype(int), columns=["Red", "Blue"])
UNTIED = pd.DataFrame({"Red": [0, 0, 1, 1], "Blue": [0, 1, 0, 1]})
TIED = pd.DataFrame({"Red": [0, 0, 0, 0, 1, 1], "Blue": [0, 0, 0, 1, 1, 1]})  # 3/4 more of the red ones are blue
CLEAN = {"Red": torch.tensor([0.5, 0.0, 0.0]), "Blue": torch.tensor([0.0, 0.5, 0.0])}
MIXED = {"Red": torch.tensor([0.5, 0.5, 0.0]), "Blue": torch.tensor([0.5, 0.5, 0.0])}


def study(num_images: int = 50, train_attributes: pd.DataFrame = UNTIED, *, in_full: bool = True) -> EditStudy:
    params = small_params(
        evaluate__attributes=["Red", "Blue"],
        evaluate__strengths=[0.2, 1.0],
        evaluate__num_edited_images=num_images,
        evaluate__batch_size=16,
    )
    directions: dict[Method, Directions] = {"difference": MIXED, "joint": CLEAN}
    return study_edits(
        Swatches(),  # type: ignore[arg-type]
        Colours().eval(),
        IMAGES,
        ATTRIBUTES,
        train_attributes,
        directions,
        params.evaluate,
        in_full=in_full,
        seed=0,
    )


STUDY = study()


def row(attribute: str, method: str, strength: float, study: EditStudy = STUDY) -> dict[str, float]:
    rows = {(row["attribute"], row["method"], row["strength"]): row for row in study.table.to_dict("records")}
    return {str(key): value for key, value in rows[attribute, method, strength].items()}


def test_edit_of_one_colour_succeeds_without_leakage() -> None:
    found = row("Red", "joint", 1.0)
    assert (found["success"], found["leakage"], found["selectivity"]) == (1, 0, 1)
    assert (found["success_low"], found["success_high"]) == pytest.approx((0.9398, 1), abs=1e-4)  # of 60 images
    assert row("Red", "joint", 0.2)["success"] == 0
    assert found["cycle_error"] < 0.02
    assert found["ssim"] < row("Red", "joint", 0.2)["ssim"] < 1


def test_edit_of_both_colours_leaks_into_the_other() -> None:
    found = row("Red", "difference", 1.0)
    assert found["success"] == 1
    can_change = LABELS[:, 0] == LABELS[:, 1]  # both colours move in the same direction
    assert found["leakage"] == pytest.approx(can_change.mean())


def test_a_change_that_the_data_ties_to_the_edit_is_no_leakage() -> None:
    """Blue follows in the images that have both colours or none, and 3/4 of all images should change so."""
    tied = study(train_attributes=TIED)
    found = row("Red", "difference", 1.0, tied)
    num_following = (LABELS[:, 0] == LABELS[:, 1]).mean()
    assert found["leakage"] == pytest.approx(max(0, num_following - 0.75), abs=1e-9)
    assert found["selectivity"] == pytest.approx(1 - found["leakage"])
    strengths = {"Red": 1.0, "Blue": 1.0}
    (red, blue), (_, all_blue) = (
        part.leakage(strengths, "difference").loc["Red", ["Red", "Blue"]].to_numpy(dtype=float)
        for part in (tied, STUDY)
    )
    assert red == pytest.approx(1, abs=0.01)  # what is edited is not tied to itself
    assert abs(blue) < 0.01 < abs(all_blue)


def test_control_has_its_own_direction_for_each_image() -> None:
    """Directions of length 0.71 are uniform on the sphere; an edit succeeds if one component exceeds 0.3."""
    found = [row(colour, RANDOM, 1.0) for colour in ("Red", "Blue")]
    expected = (1 - 0.3 / 0.5**0.5) / 2
    for name in ("success", "leakage"):
        assert np.mean([part[name] for part in found]) == pytest.approx(expected, abs=0.1)
    assert row("Red", RANDOM, 0.2)["success"] == 0


@pytest.mark.parametrize(("num_successes", "num_trials"), [(40, 40), (0, 40), (1, 1), (7, 10), (3, 200), (999, 1000)])
def test_interval_of_a_share_matches_scipy(num_successes: int, num_trials: int) -> None:
    expected = binomtest(num_successes, num_trials).proportion_ci(method="wilson")
    found = wilson_interval(num_successes, num_trials)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_every_edit_has_the_interval_of_its_successes() -> None:
    for found in STUDY.table.to_dict("records"):
        num_successes = round(found["success"] * found["num_images"])
        expected = binomtest(num_successes, found["num_images"]).proportion_ci(method="wilson")
        assert (found["success_low"], found["success_high"]) == pytest.approx((expected.low, expected.high), abs=1e-7)
        assert found["success_low"] < found["success_high"]


def test_best_method_and_strengths_have_the_highest_selectivity() -> None:
    assert STUDY.best_method() == "joint"
    strengths = STUDY.best_strengths("joint")
    assert strengths == {"Red": 1.0, "Blue": 1.0}
    at_best = STUDY.at(strengths)
    assert set(at_best["strength"]) == {1.0}
    success = at_best.groupby("method")["success"].mean()
    assert success.drop(RANDOM).to_dict() == {"joint": 1, "difference": pytest.approx(1)}
    assert success[RANDOM] > 0  # at the same strength as the others; at its own best one it would change nothing


def test_leakage_matrix_shows_which_attributes_change() -> None:
    clean, mixed = (
        STUDY.leakage(STUDY.best_strengths(method), method).loc[["Red", "Blue"], ["Red", "Blue"]].to_numpy()
        for method in ("joint", "difference")
    )
    assert clean == pytest.approx(np.eye(2), abs=0.01)
    assert np.diag(mixed) == pytest.approx([1, 1], abs=0.01)
    assert abs(mixed[0, 1]) > 0.1


def test_number_of_edited_images_is_limited() -> None:
    assert set(study(num_images=5).table["num_images"]) == {10}
    assert STUDY.table["num_images"].max() == 60


def test_study_that_only_chooses_leaves_out_fidelity_and_control() -> None:
    chosen = study(in_full=False)
    assert chosen.table[["ssim", "cycle_error"]].isna().all(axis=None)
    fitted = STUDY.table[STUDY.table["method"] != RANDOM].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        chosen.table.drop(columns=["ssim", "cycle_error"]), fitted.drop(columns=["ssim", "cycle_error"])
    )
    assert chosen.best_method() == STUDY.best_method()
