from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import disc_images

from facevae.errors import UserError
from facevae.evaluate.distances import frechet_distance
from facevae.evaluate.inception import Inception

CPU = torch.device("cpu")


def test_features_differ_by_image_but_not_by_batch_size(inception_weights: Path) -> None:
    discs, noise = disc_images(6, size=16), np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    inception = Inception(inception_weights, batch_size=4, device=CPU)
    features = inception.features(discs)
    assert features.shape == (6, 2048)
    torch.testing.assert_close(Inception(inception_weights, batch_size=6, device=CPU).features(discs), features)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(features, inception.features(noise)) > 1


def test_grey_images_count_as_colour_images(inception_weights: Path) -> None:
    grey = disc_images(2, size=16, channels=1)
    inception = Inception(inception_weights, batch_size=2, device=CPU)
    torch.testing.assert_close(inception.features(grey), inception.features(np.repeat(grey, 3, axis=3)))


class Payload:
    """A harmful pickle: it creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_harmful_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Payload(tmp_path / "harm")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not have the weights pt_inception-2015-12-05"):
        Inception(tmp_path / "weights.pth", batch_size=2, device=CPU)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_file_without_weights_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"evaluate.inception_weights: .*weights.pth does not have the weights"):
        Inception(path, batch_size=2, device=CPU)


def test_another_file_of_weights_is_refused(inception_weights: Path, tmp_path: Path) -> None:
    """DVC would not notice that the file is another one, so a result must not depend on which it is."""
    weights = torch.load(inception_weights, weights_only=True)
    weights["fc.bias"] = weights["fc.bias"] + 1
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights.pth does not have the weights .* its SHA-256 is [0-9a-f]{64}, not "):
        Inception(tmp_path / "weights.pth", batch_size=2, device=CPU)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights.pth is missing; null skips the FID"):
        Inception(tmp_path / "weights.pth", batch_size=2, device=CPU)
