import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_params
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from facevae.config.schema import Params
from facevae.data.preparation import prepare
from facevae.data.prepared import PreparedSet
from facevae.data.sources.folder import open_folder
from facevae.errors import UserError
from facevae.evaluate import measurements as measurements_module
from facevae.evaluate.distances import sharpness
from facevae.evaluate.edits import CHANGE_COLUMNS, COLUMNS, RANDOM, EditStudy
from facevae.evaluate.evaluation import Evaluation, evaluate
from facevae.evaluate.judge import Classifier
from facevae.evaluate.judge_training import train_classifier
from facevae.evaluate.likelihood import calibrated_log_sigma
from facevae.evaluate.reconstruction import reconstruction_metrics
from facevae.model import objective
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE, new_model
from facevae.train.loop import Setup, train

CPU = torch.device("cpu")
TABLES = [
    "latent.csv",
    "likelihood.csv",
    "samplers.csv",
    "conditional.csv",
    "attribute_auc.csv",
    "edits.csv",
    "leakage.csv",
]


@pytest.fixture
def prepared(write_images: Callable[..., Path], tmp_path: Path) -> PreparedSet:
    """Forty images; every other one has the attribute Odd."""
    root = write_images([f"{i:02}.png" for i in range(40)])
    (root / "attributes.csv").write_text("name,Odd\n" + "".join(f"{i:02}.png,{i % 2}\n" for i in range(40)))
    prepare(open_folder(root, None), small_params(data__source="folder").data, 0, tmp_path / "prepared")
    return PreparedSet(tmp_path / "prepared")


def trained(prepared: PreparedSet, params: Params) -> tuple[VAE, CheckpointHeader]:
    images = prepared.images("train"), prepared.images("validation")
    model = new_model(params.model, 8, 3, seed=0)
    result = train(model, Setup(*images, params.train, torch.device("cpu"), seed=0))
    likelihood, binarization = params.train.likelihood, params.train.binarization
    fields = {"image_size": 8, "image_channels": 3, "crop": None, "fingerprint": "abc"}
    header = CheckpointHeader(model=params.model, likelihood=likelihood, binarization=binarization, **fields)  # type: ignore[arg-type]
    return result.model, header


def measured(
    prepared: PreparedSet, attributes: tuple[str, ...] = ("Odd",), *, mirrored: bool = False, **changes: object
) -> Evaluation:
    params = small_params(evaluate__attributes=list(attributes), **changes)
    model, header = trained(prepared, params)
    images, table = prepared.images("train"), prepared.attributes("train")[list(attributes)]
    classifier = train_classifier(images, table, params.classifier, "float32", CPU, horizontal_flip=False, seed=0)
    return evaluate(model, header, classifier, prepared, params.evaluate, horizontal_flip=mirrored, seed=0)


def test_metrics_are_of_the_requested_split(prepared: PreparedSet) -> None:
    params = small_params(evaluate__attributes=["Odd"])
    model, _ = trained(prepared, params)
    for split in ("test", "validation"):
        evaluation = measured(prepared, evaluate__split=split)
        images = np.array(prepared.images("test" if split == "test" else "validation"))
        posteriors = encode_all(model, images)
        expected = reconstruction_metrics(model, images, posteriors, batch_size=5, seed=0)
        assert evaluation.metrics["squared_error"] == pytest.approx(expected["squared_error"])
        assert evaluation.tables["latent.csv"]["kl_nats"].sum() == pytest.approx(expected["kl_nats"], rel=1e-4)
        (row,) = evaluation.tables["attribute_auc.csv"].to_dict("records")
        has = prepared.attributes("test" if split == "test" else "validation")["Odd"].to_numpy(dtype=bool)
        scores = (posteriors.mean @ evaluation.directions.by_method["joint"]["Odd"]).numpy()
        assert row["joint"] == pytest.approx(roc_auc_score(has, scores))
        assert row["num_with"] + row["num_without"] == len(images)


def test_metrics_are_finite_and_match_the_tables(prepared: PreparedSet) -> None:
    evaluation = measured(prepared)
    assert np.isfinite(list(evaluation.metrics.values())).all()
    assert list(evaluation.tables) == TABLES
    samplers = evaluation.tables["samplers.csv"].set_index("sampler").to_dict("index")
    assert evaluation.metrics["frechet_distance"] == samplers[evaluation.priors.best]["frechet_distance"]
    assert {*evaluation.priors.priors, "reconstructions", "training images"} == set(samplers)
    rows = evaluation.tables["likelihood.csv"].to_dict("records")
    bits = {(row["sigma"], row["prior"]): row["importance_weighted_bits_per_dimension"] for row in rows}
    assert evaluation.metrics["importance_weighted_bits_per_dimension"] == bits["trained", "normal"]
    assert evaluation.metrics["calibrated_bits_per_dimension"] == bits["calibrated", "normal"]
    assert evaluation.metrics["fitted_prior_bits_per_dimension"] == bits["calibrated", evaluation.priors.best]
    assert bits["calibrated", "normal"] < bits["trained", "normal"]
    assert evaluation.metrics["importance_weighted_nats"] >= evaluation.metrics["elbo_nats"]


def test_nothing_is_fitted_to_the_held_out_images(prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[float] = []

    def record(squared_error: float, num_values: int) -> torch.Tensor:
        errors.append(squared_error)
        return calibrated_log_sigma(squared_error, num_values)

    monkeypatch.setattr(measurements_module, "calibrated_log_sigma", record)
    first = measured(prepared)
    path = prepared.folder / "test.npy"
    np.save(path, 255 - np.load(path))
    second = measured(prepared)
    assert second.metrics["squared_error"] != first.metrics["squared_error"]
    assert errors[0] == errors[1]
    assert second.priors.scores == first.priors.scores
    for method, directions in first.directions.by_method.items():
        assert torch.equal(second.directions.by_method[method]["Odd"], directions["Odd"])


def test_validation_images_choose_method_and_strength(prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [name for name in COLUMNS if name not in ("attribute", "method", "strength")]
    validation = prepared.images("validation")

    def study(*arguments: Any, **_: object) -> EditStudy:
        """`joint` at 2 is the best on validation images, `balanced` at 1 on test images."""
        best = ("joint", 2.0) if np.array_equal(arguments[2], validation) else ("balanced", 1.0)
        rows = [
            {"attribute": "Odd", "method": method, "strength": strength}
            | dict.fromkeys(numbers, len(method) + strength + 100 * ((method, strength) == best))
            for method in ("joint", "balanced", RANDOM)
            for strength in (1.0, 2.0)
        ]
        keys = pd.DataFrame(rows)[["attribute", "method", "strength"]]
        return EditStudy(pd.DataFrame(rows), keys.assign(judged="Odd", change=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))

    monkeypatch.setattr(measurements_module, "study_edits", study)
    evaluation = measured(prepared)
    assert evaluation.directions.best == "joint"
    assert evaluation.metrics["edit_success"] == len("joint") + 2
    assert evaluation.metrics["edit_success_random"] == len(RANDOM) + 2
    assert evaluation.tables["leakage.csv"]["Odd"].tolist() == [2.0]


@pytest.mark.parametrize("mirrored", [False, True])
def test_ratios_divide_samples_by_images(prepared: PreparedSet, mirrored: bool) -> None:
    model, _ = trained(prepared, small_params(evaluate__attributes=["Odd"]))
    evaluation = measured(prepared, mirrored=mirrored)
    known, real = np.array(prepared.images("train")), np.array(prepared.images("test"))
    row = evaluation.tables["samplers.csv"].set_index("sampler").loc["training images"]
    assert row["sharpness_ratio"] == pytest.approx(sharpness(known[:8]) / sharpness(real[:8]))

    seen = np.concatenate([known, known[:, :, ::-1]]) if mirrored else known

    def median(latent: torch.Tensor) -> float:
        pictures = decode_all(model, latent, 5).reshape(len(latent), -1)
        distances = np.sort(cdist(pictures, seen.reshape(len(seen), -1)).min(1))
        return float(distances[(len(distances) - 1) // 2])  # the lower of the two, like torch

    drawn = evaluation.priors.priors[evaluation.priors.best].sample(100, torch.Generator().manual_seed(0))
    expected = median(drawn) / median(encode_all(model, real, 5).mean)
    assert evaluation.metrics["neighbour_distance_ratio"] == pytest.approx(expected, rel=1e-5)


def test_same_seed_gives_same_metrics_and_tables(prepared: PreparedSet) -> None:
    first, again = measured(prepared), measured(prepared)
    assert first.metrics == again.metrics
    for name in TABLES:
        assert first.tables[name].equals(again.tables[name]), name


def test_collapsed_posterior_is_warned_of(prepared: PreparedSet, caplog: pytest.LogCaptureFixture) -> None:
    evaluation = measured(prepared, train__beta=1e6, train__epochs=5)
    assert (evaluation.metrics["posterior_collapsed"], evaluation.metrics["active_units"]) == (1, 0)
    assert ("facevae.evaluate.latent", logging.WARNING) in [record[:2] for record in caplog.record_tuples]
    assert "the posterior has collapsed" in caplog.text
    caplog.clear()
    assert measured(prepared, train__beta=0.0, train__epochs=5).metrics["posterior_collapsed"] == 0
    assert "collapsed" not in caplog.text


@pytest.mark.parametrize(("bias", "found"), [(-9.0, (0, 100)), (9.0, (100, 0))])
def test_classifier_that_cannot_judge_is_warned_of(
    prepared: PreparedSet, caplog: pytest.LogCaptureFixture, bias: float, found: tuple[int, int]
) -> None:
    params = small_params(evaluate__attributes=["Odd"])
    model, header = trained(prepared, params)
    classifier = Classifier(8, 3, ("Odd",)).eval()
    with torch.no_grad():
        classifier.logits.bias.fill_(bias)
    evaluation = evaluate(model, header, classifier, prepared, params.evaluate, horizontal_flip=False, seed=0)
    expected = "cannot judge Odd: it recognises {} % of the test images with it and {} % of those without it"
    assert expected.format(*found) in caplog.text
    (row,) = evaluation.tables["attribute_auc.csv"].to_dict("records")
    assert (row["classifier_recall"], row["classifier_specificity"]) == ((0, 1) if bias < 0 else (1, 0))
    assert evaluation.metrics["classifier_auc"] == row["classifier_auc"]


def test_no_edit_metrics_if_no_edit_can_be_judged(prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = EditStudy(pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=CHANGE_COLUMNS))
    monkeypatch.setattr(measurements_module, "study_edits", lambda *_, **__: nothing)
    evaluation = measured(prepared)
    assert not [name for name in evaluation.metrics if name.startswith("edit")]
    assert len(evaluation.tables["edits.csv"]) == len(evaluation.tables["leakage.csv"]) == 0


def test_samples_of_a_binary_model_are_compared_with_grey_images(prepared: PreparedSet) -> None:
    """Its pictures are probabilities of white, so they have all intensities, like the images the classifier takes."""
    binary = measured(prepared, train__likelihood="bernoulli", train__binarization="per_epoch")
    grey = measured(prepared)
    measures = ["frechet_distance", "kernel_distance", "sliced_wasserstein_distance", "sharpness_ratio"]
    tables = [part.tables["samplers.csv"].set_index("sampler")[measures].T for part in (binary, grey)]
    assert tables[0]["training images"].equals(tables[1]["training images"])
    assert binary.metrics["classifier_auc"] == grey.metrics["classifier_auc"]


def test_set_without_attributes_has_all_metrics_but_edits(prepared: PreparedSet) -> None:
    evaluation = measured(prepared, attributes=())
    assert "frechet_distance" in evaluation.metrics
    assert not [name for name in evaluation.metrics if name.startswith(("edit", "classifier"))]
    assert len(evaluation.tables["edits.csv"]) == len(evaluation.tables["leakage.csv"]) == 0
    assert evaluation.directions.best == "difference"


def test_bernoulli_has_no_calibrated_sigma(prepared: PreparedSet) -> None:
    evaluation = measured(prepared, train__likelihood="bernoulli", train__binarization="per_epoch")
    assert set(evaluation.tables["likelihood.csv"]["sigma"]) == {"trained"}
    metrics = evaluation.metrics
    assert metrics["calibrated_bits_per_dimension"] == metrics["importance_weighted_bits_per_dimension"]
    assert -8 * 8 * 3 * 2 < metrics["elbo_nats"] < 0


def test_unknown_attribute_names_the_key(prepared: PreparedSet) -> None:
    params = small_params(evaluate__attributes=["Bald"])
    model, header = trained(prepared, params)
    classifier = Classifier(8, 3, ("Odd",)).eval()
    with pytest.raises(
        UserError, match="evaluate.attributes: 'Bald' is not an attribute of this data set. Known attributes: Odd"
    ):
        evaluate(model, header, classifier, prepared, params.evaluate, horizontal_flip=False, seed=0)


def test_squared_error_keeps_a_variance_of_one_half(prepared: PreparedSet) -> None:
    params = small_params(evaluate__attributes=["Odd"])
    model, _ = trained(prepared, params)
    assert float(objective.gaussian_nats(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), model.log_sigma)) == (
        pytest.approx(1 + 0.5 * np.log(np.pi))
    )


def test_fid_is_measured_if_weights_are_given(prepared: PreparedSet, inception_weights: Path) -> None:
    evaluation = measured(prepared, evaluate__inception_weights=str(inception_weights))
    samplers = evaluation.tables["samplers.csv"].set_index("sampler")["inception_frechet_distance"]
    assert evaluation.metrics["inception_frechet_distance"] == samplers[evaluation.priors.best] > 0
    assert samplers["reconstructions"] != samplers["normal"]
    assert "inception_frechet_distance" not in measured(prepared).metrics
