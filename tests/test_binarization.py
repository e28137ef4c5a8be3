import numpy as np
import pytest
from conftest import disc_images

from facevae.config.schema import Binarization
from facevae.model.binarization import binarize

GREY = np.repeat(np.arange(256, dtype=np.uint8), 2000).reshape(256, 2000, 1, 1)


def test_none_returns_the_images_unchanged() -> None:
    images = disc_images(3)
    assert binarize(images, "none", seed=0) is images


def test_the_threshold_is_one_half() -> None:
    assert (binarize(GREY, "threshold", seed=0)[:, 0, 0, 0] == np.repeat([0, 255], 128)).all()


@pytest.mark.parametrize("binarization", ["fixed", "per_epoch"])
def test_the_share_of_white_pixels_is_the_intensity(binarization: Binarization) -> None:
    drawn = binarize(GREY, binarization, seed=0)
    assert set(np.unique(drawn)) == {0, 255}
    assert np.abs(drawn.mean((1, 2, 3)) - np.arange(256)).max() < 15
    assert not drawn[0].any()
    assert drawn[255].all()


def test_only_per_epoch_draws_anew_in_every_epoch() -> None:
    def draw(binarization: Binarization, seed: int, epoch: int) -> bytes:
        return binarize(GREY, binarization, seed, epoch).tobytes()

    assert draw("fixed", 1, 1) == draw("fixed", 1, 2) != draw("fixed", 2, 1)
    assert draw("per_epoch", 1, 1) == draw("per_epoch", 1, 1) != draw("per_epoch", 1, 2)
