import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_params
from numpy.typing import NDArray
from PIL import Image

from facevae.config.schema import Params
from facevae.data.preparation import prepare
from facevae.data.prepared import PreparedSet, SplitName
from facevae.data.sources.folder import open_folder
from facevae.errors import UserError
from facevae.evaluate.directions import FittedDirections
from facevae.evaluate.latent import latent_table
from facevae.figures import charts, pictures, png
from facevae.figures.gallery import COLUMNS, FIGURES, Results, render_all
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE
from facevae.priors.fitting import fit_priors

HISTORY = pd.DataFrame(
    {"epoch": [1, 2]}
    | {f"{split}_{term}": [2.0, 1.0] for split in ("train", "validation") for term in ("loss", "reconstruction", "kl")}
)
EDITS = pd.DataFrame(
    [("Odd", method, 1.0, 0.5, 0.4, 0.6, 0.1) for method in ("joint", "random")],
    columns=["attribute", "method", "strength", "success", "success_low", "success_high", "leakage"],
)
LEAKAGE = pd.DataFrame([("Odd", 0.5, -0.5)], columns=["attribute", "Odd", "Even"])


@pytest.fixture
def prepared(write_images: Callable[..., Path], tmp_path: Path) -> PreparedSet:
    root = write_images([f"{i}.png" for i in range(20)])
    rows = "".join(f"{i}.png,{i % 2},{(i + 1) % 2}\n" for i in range(20))
    (root / "attributes.csv").write_text("name,Odd,Even\n" + rows)
    prepare(open_folder(root, None), small_params(data__source="folder").data, 0, tmp_path / "prepared")
    return PreparedSet(tmp_path / "prepared")


def results_of(prepared: PreparedSet, params: Params) -> Results:
    """Results of an untrained model."""
    torch.manual_seed(0)
    model = VAE(params.model, 8, 3).eval()
    header = CheckpointHeader(
        model=params.model,
        image_size=8,
        image_channels=3,
        likelihood="squared_error",
        binarization="none",
        crop=None,
        fingerprint="abc",
    )
    directions = FittedDirections({"joint": {"Odd": torch.ones(params.model.latent_dim)}}, "joint")
    posteriors = encode_all(model, prepared.images("train"))
    labels = torch.zeros(len(posteriors.mean), 0)
    priors = fit_priors(posteriors, posteriors, labels, (), lambda _: 0.0, num_samples=4, seed=0)
    return Results(model, header, priors, directions, prepared, HISTORY, latent_table(posteriors), EDITS, LEAKAGE)


def render(folder: Path, prepared: PreparedSet, params: Params) -> list[Path]:
    render_all(folder, results_of(prepared, params), params.figures, horizontal_flip=False, seed=0)
    return [folder / f"{name}.png" for name in FIGURES]


@pytest.mark.parametrize(("latent_dim", "attributes"), [(2, []), (5, ["Odd"])])
def test_every_figure_has_the_same_bytes_twice(
    prepared: PreparedSet, tmp_path: Path, latent_dim: int, attributes: list[str]
) -> None:
    params = small_params(
        model__latent_dim=latent_dim, figures__attributes=attributes, figures__latent_map_attributes=attributes
    )
    paths = render(tmp_path / "first", prepared, params)
    assert [path.name for path in paths] == [f"{name}.png" for name in FIGURES]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 60
    for path in render(tmp_path / "second", prepared, params):
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_figures_show_the_images_they_name(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: SplitName
) -> None:
    shown: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, Sequence[str]] = {}
    coloured_by: list[Any] = []

    def record(path: Path, tiles: NDArray[np.uint8], *, row_labels: Sequence[str] = (), **_: object) -> None:
        shown[path.stem], labels[path.stem] = tiles, row_labels

    monkeypatch.setattr(png, "save_tiles", record)
    monkeypatch.setattr(charts, "save_latent_map", lambda *arguments: coloured_by.append(arguments[3]))
    params = small_params(
        figures__split=split,
        figures__attributes=["Odd"],
        figures__strengths=[-1.0, 0.0, 1.0],
        figures__latent_map_attributes=["Odd"],
        figures__num_reconstructions=4,
    )
    results = results_of(prepared, params)
    render_all(tmp_path, results, params.figures, horizontal_flip=False, seed=0)
    images, model = prepared.images(split), results.model
    mean = encode_all(model, np.array(images)).mean
    assert np.array_equal(shown["reconstructions"][0], images)
    assert np.array_equal(shown["reconstructions"][1], decode_all(model, mean))
    assert np.array_equal(shown["interpolation"][0, [0, -1]], images[:2])
    one_more = decode_all(model, mean[:1] + results.directions.by_method["joint"]["Odd"])
    assert np.array_equal(shown["arithmetic"][0, [0, -1]], np.concatenate([images[:1], one_more]))
    for name, prior in results.priors.priors.items():
        row = pictures.sample(model, prior, COLUMNS, COLUMNS, 0)[0]
        assert np.array_equal(shown["samplers"][list(labels["samplers"]).index(name)], row)
    best = pictures.sample(model, results.priors.priors[results.priors.best], COLUMNS, COLUMNS, 0)
    assert np.array_equal(
        shown["neighbours"], [*best, *pictures.nearest(best[0], prepared.images("train"), mirrored=False)]
    )
    own = pictures.sample(model, results.priors.priors[results.priors.best], params.figures.num_samples, COLUMNS, 0)
    assert np.array_equal(shown["samples"], own)
    assert list(coloured_by[0]) == [0 if odd else -1 for odd in prepared.attributes(split)["Odd"]]


def test_figures_say_if_no_edit_was_judged(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: dict[str, str] = {}
    monkeypatch.setattr(png, "save_note", lambda path, text: notes.update({path.stem: text}))
    params = small_params(figures__attributes=["Odd"], figures__latent_map_attributes=[])
    results = dataclasses.replace(results_of(prepared, params), edits=EDITS[:0], leakage=LEAKAGE[:0])
    render_all(tmp_path, results, params.figures, horizontal_flip=False, seed=0)
    assert notes.keys() == {"strengths", "leakage"}
    assert all("no reconstruction correctly for evaluate.attributes" in text for text in notes.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"figures__attributes": ["Even"]},
            "figures.attributes: 'Even' is not an attribute of this data set. Known attributes: Odd",
        ),
        (
            {"figures__attributes": ["Odd"], "figures__latent_map_attributes": ["Old"]},
            "figures.latent_map_attributes: 'Old' is not an attribute of this data set. Known attributes: Even, Odd",
        ),
    ],
)
def test_unknown_attribute_names_the_key(
    prepared: PreparedSet, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        render(tmp_path / "plots", prepared, small_params(**changes))
    assert message in str(error.value)
    assert not (tmp_path / "plots").exists()
