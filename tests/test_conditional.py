"""Samples that were asked to have an attribute, judged by a classifier whose verdict is known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import disc_images, small_params
from scipy.spatial.distance import pdist

from facevae.evaluate import conditional
from facevae.evaluate.conditional import conditional_metrics, conditional_table, mean_distance
from facevae.evaluate.judge import Classifier, Judgement
from facevae.model.inference import decode_all
from facevae.model.vae import new_model
from facevae.priors.flow_matching import GUIDANCE, FlowMatching
from facevae.priors.velocity import Velocity


def test_mean_distance_is_that_of_all_pairs() -> None:
    images = disc_images(6)
    expected = pdist(images.reshape(6, -1) / 255).mean()
    assert mean_distance(images) == pytest.approx(expected)


def test_the_table_counts_what_the_judge_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The velocity adds the label to each latent, and the judge calls a picture odd if it is bright."""
    params = small_params(evaluate__attributes=["Odd"], evaluate__num_samples=40)
    model = new_model(params.model, 8, 3, seed=0).eval()
    flow = FlowMatching(
        Velocity(3, 1), torch.zeros(3).double(), torch.eye(3).double(), ("Odd",), torch.zeros(1, 1, dtype=torch.int8)
    )
    monkeypatch.setattr(flow.velocity, "forward", lambda latent, _, labels: torch.zeros_like(latent) + labels)
    images, attributes = disc_images(9), pd.DataFrame({"Odd": [1, 0, 0] * 3})
    threshold = float(decode_all(model, torch.zeros(1, 3)).mean())

    def judge_brightness(_: Classifier, pictures: Any, __: int) -> Judgement:
        bright = torch.from_numpy(np.asarray(pictures).mean((1, 2, 3)) > threshold)
        return Judgement(torch.zeros(len(pictures), 1), torch.where(bright, 9.0, -9.0)[:, None])

    monkeypatch.setattr(conditional, "judge", judge_brightness)
    classifier = Classifier(8, 3, ("Odd",)).eval()
    table = conditional_table(model, classifier, flow, images, attributes, params.evaluate, seed=3)
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(3))
    pictures = {shift: decode_all(model, noise + conditional_shift(shift)) for shift in (-1, 0, 1)}
    for row, shift, has in zip(table.to_dict("records"), (1, -1), (True, False), strict=True):
        assert (row["attribute"], row["asked_for"], row["num_samples"]) == ("Odd", "with" if has else "without", 40)
        for column, shown in (("success", pictures[shift]), ("unconditional", pictures[0])):
            assert row[column] == pytest.approx(np.mean((shown.mean((1, 2, 3)) > threshold) == has))
        distances = [pdist(shown.reshape(40, -1)).mean() for shown in (pictures[shift], pictures[0])]
        assert row["diversity"] == pytest.approx(distances[0] / distances[1], rel=1e-4)
        own = images[attributes["Odd"].to_numpy(dtype=bool) == has]
        expected = pdist(own.reshape(len(own), -1)).mean() / pdist(images.reshape(9, -1)).mean()
        assert row["image_diversity"] == pytest.approx(expected)
    metrics = conditional_metrics(table)
    assert metrics["conditional_success"] == table["success"].min()
    assert conditional_metrics(table[:0]) == {}


def conditional_shift(label: int) -> float:
    """What the labels' velocity, beyond which the guidance goes, adds to a latent from time 0 to 1."""
    return GUIDANCE * label
