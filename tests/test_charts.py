from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import disc_images
from matplotlib.figure import Figure
from PIL import Image

from facevae.figures import charts

TILES = disc_images(6, size=64).reshape(2, 3, 64, 64, 3)
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3]}
    | {f"train_{term}": [3.0, 2.0, 1.0] for term in ("loss", "reconstruction", "kl")}
    | {f"validation_{term}": [3.0, 2.0, 2.5] for term in ("loss", "reconstruction", "kl")}
)
LATENT = pd.DataFrame(
    {"rank": [1, 2], "kl_nats": [3.0, 0.1], "aggregate_mean": [0.1, 0.0], "aggregate_variance": [1.2, 1.0]}
)
EDITS = pd.DataFrame(
    [
        (attribute, method, strength, strength / 2, strength / 3, strength / 1.9, 0.1)
        for attribute in ("Eyeglasses", "Smiling", "Male", "Young")
        for method in ("joint", "random")
        for strength in (0.5, 1.0)
    ],
    columns=["attribute", "method", "strength", "success", "success_low", "success_high", "leakage"],
)
LEAKAGE = pd.DataFrame([[0.9, 0.1, -0.2], [0.0, 0.8, 0.1]], index=["Male", "Young"], columns=["Male", "Young", "Bald"])


def test_charts_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    categories = np.arange(30) % 3 - 1
    for name in ("first", "second"):
        folder = tmp_path / name
        charts.save_losses(folder / "losses.png", HISTORY)
        charts.save_latent_map(folder / "map.png", TILES, points, categories, ["a", "b"], ("x", "y"))
        charts.save_latent_health(folder / "health.png", LATENT, points)
        charts.save_strengths(folder / "strengths.png", EDITS, "joint")
        charts.save_leakage(folder / "leakage.png", LEAKAGE)
    for path in (tmp_path / "first").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "second" / path.name).read_bytes()
        assert b"matplotlib" not in content.lower()
        with Image.open(path) as picture:
            assert min(picture.size) > 150


def test_other_numbers_give_another_chart(tmp_path: Path) -> None:
    charts.save_leakage(tmp_path / "a.png", LEAKAGE)
    charts.save_leakage(tmp_path / "b.png", -LEAKAGE)
    charts.save_strengths(tmp_path / "c.png", EDITS, "joint")
    charts.save_strengths(tmp_path / "d.png", EDITS, "random")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_strengths_show_band_and_leakage_of_the_best_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(charts, "save_figure", lambda figure, _: drawn.append(figure))
    charts.save_strengths(Path("unused.png"), EDITS, "joint")
    for axes in drawn[0].axes:
        lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
        assert lines == {"joint": [0.25, 0.5], "joint: leakage": [0.1, 0.1], "random": [0.25, 0.5]}
        (band,) = axes.collections
        assert band.get_paths()[0].get_extents().get_points()[:, 1].tolist() == pytest.approx([0.5 / 3, 1 / 1.9])


def test_losses_mark_the_best_epoch() -> None:
    for axes in charts.draw_losses(HISTORY).axes:
        labels = axes.get_legend_handles_labels()[1]
        assert labels == ["Train", "Validation", "Best epoch (2): 2.0"]
        assert all(np.unique(line.get_xdata()).tolist() == [2] for line in axes.lines[2:])
        assert len(axes.lines) == 4


def test_sharpening_does_not_count_as_the_best_epoch() -> None:
    """The weights of its last epoch are kept, whatever the validation loss."""
    row = HISTORY.iloc[1:2].assign(epoch=4, validation_loss=1.0, discriminator_loss=1.7)
    axes = charts.draw_losses(pd.concat([HISTORY, row])).axes[0]
    assert axes.get_legend_handles_labels()[1][2] == "Best epoch (2): 2.0"


def test_history_of_one_epoch_is_drawn(tmp_path: Path) -> None:
    charts.save_losses(tmp_path / "losses.png", HISTORY[:1])
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.width > 500
