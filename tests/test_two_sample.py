import numpy as np
import pytest
import torch
from conftest import disc_images, small_params

from facevae.evaluate.two_sample import MAX_PAIRS, reconstructed_pairs, two_sample_accuracy
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import new_model

CPU = torch.device("cpu")
TRAIN, HELDOUT = disc_images(96, size=16), disc_images(64, seed=1, size=16)


def test_equal_pairs_cannot_be_told_apart() -> None:
    assert two_sample_accuracy((TRAIN, TRAIN), (HELDOUT, HELDOUT), CPU, seed=0) == 0.5


def test_images_of_the_same_kind_can_hardly_be_told_apart() -> None:
    others = disc_images(96, seed=2, size=16), disc_images(64, seed=3, size=16)
    assert 0.35 < two_sample_accuracy((TRAIN, others[0]), (HELDOUT, others[1]), CPU, seed=0) < 0.65


def test_another_contrast_is_noticed() -> None:
    accuracy = two_sample_accuracy((TRAIN, TRAIN // 4), (HELDOUT, HELDOUT // 4), CPU, seed=0)
    assert accuracy > 0.9
    assert accuracy == two_sample_accuracy((TRAIN, TRAIN // 4), (HELDOUT, HELDOUT // 4), CPU, seed=0)


def test_swapped_heldout_pairs_are_all_wrong() -> None:
    """So the accuracy is of images and reconstructions alike, and of held-out pairs only."""
    right = two_sample_accuracy((TRAIN, TRAIN // 4), (HELDOUT, HELDOUT // 4), CPU, seed=0)
    wrong = two_sample_accuracy((TRAIN, TRAIN // 4), (HELDOUT // 4, HELDOUT), CPU, seed=0)
    assert right + wrong == pytest.approx(1)


def test_pairs_are_images_and_their_reconstructions() -> None:
    model = new_model(small_params().model, 8, 3, seed=0).eval()
    images = disc_images(MAX_PAIRS + 4)
    means = encode_all(model, images).mean
    first, second = reconstructed_pairs(model, (images, means), (images[:6], means[:6]), batch_size=50)
    assert np.array_equal(first[0], images[:MAX_PAIRS])
    assert np.array_equal(first[1], decode_all(model, means)[:MAX_PAIRS])
    assert np.array_equal(second[1], decode_all(model, means[:6]))


def test_a_single_split_is_halved() -> None:
    model = new_model(small_params().model, 8, 3, seed=0).eval()
    images = disc_images(9)
    split = images, encode_all(model, images).mean
    first, second = reconstructed_pairs(model, split, split, batch_size=50)
    assert np.array_equal(np.concatenate([first[0], second[0]]), images)
    assert np.array_equal(np.concatenate([first[1], second[1]]), decode_all(model, split[1]))
    assert len(first[0]) == 4
