from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import disc_images, small_params
from sklearn.metrics import roc_auc_score

from facevae.errors import UserError
from facevae.evaluate.judge import Classifier, Judgement, judge, load_classifier, save_classifier, skill_table
from facevae.evaluate.judge_training import _augment, one_cycle, train_classifier
from facevae.model.pixels import to_unit_range

IMAGES = disc_images(200, size=16)
RED = IMAGES[..., 0].sum((1, 2)) > IMAGES[..., 2].sum((1, 2))
LARGE = (IMAGES.max(3) > 0).sum((1, 2)) > 70
ATTRIBUTES = pd.DataFrame({"Red": RED, "Large": LARGE, "Round": True}).astype(int)
CPU = torch.device("cpu")


def trained(epochs: int = 1, seed: int = 0, attributes: pd.DataFrame = ATTRIBUTES[:150]) -> Classifier:
    params = small_params(classifier__epochs=epochs, classifier__batch_size=25, classifier__learning_rate=0.01)
    return train_classifier(
        IMAGES[:150], attributes, params.classifier, "float32", CPU, horizontal_flip=False, seed=seed
    )


def test_classifier_recognises_attributes_of_unseen_images() -> None:
    classifier = trained(epochs=15)
    assert classifier.attributes == ("Red", "Large")  # all images are round
    probabilities = judge(classifier, IMAGES[150:], 20).probabilities.numpy()
    right = (probabilities > 0.5) == ATTRIBUTES[["Red", "Large"]][150:].to_numpy(dtype=bool)
    assert (right.mean(0) > 0.85).all()


def test_same_seed_gives_same_weights() -> None:
    first, again, other = (trained(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["logits.weight"], other["logits.weight"])


def test_judgement_matches_the_network_for_any_batch_size() -> None:
    classifier = trained()
    judgements = [judge(classifier, IMAGES, size) for size in (7, 200)]
    torch.testing.assert_close(judgements[0].features, judgements[1].features)
    with torch.no_grad():
        logits = classifier(to_unit_range(IMAGES, CPU))
    torch.testing.assert_close(judgements[0].probabilities, torch.sigmoid(logits))
    assert judgements[0].features.shape == (200, 128)


@pytest.mark.parametrize(("image_size", "map_size"), [(8, 1), (32, 2), (64, 4), (127, 8), (128, 4), (218, 7), (256, 4)])
def test_last_feature_maps_are_small_for_any_image_size(image_size: int, map_size: int) -> None:
    classifier = Classifier(image_size, 1, ("Red",)).eval()
    maps = classifier.blocks(torch.zeros(1, 1, image_size, image_size))
    assert maps.shape == (1, 128, map_size, map_size)


@pytest.mark.parametrize("horizontal_flip", [True, False])
def test_half_of_the_images_are_blurred_and_half_mirrored_if_asked(horizontal_flip: bool) -> None:
    images = to_unit_range(IMAGES, CPU)
    augmented = _augment(images, torch.Generator().manual_seed(0), horizontal_flip)
    as_is, mirrored = ((augmented == other).flatten(1).all(1) for other in (images, images.flip(3)))
    is_sharp = as_is | mirrored
    assert 70 < int(is_sharp.sum()) < 130  # of 200
    assert (
        (30 < int(mirrored.sum()) < 70) if horizontal_flip else (int(mirrored.sum()) == int((as_is & mirrored).sum()))
    )
    before, after = (part[~is_sharp].flatten(1).var(1) for part in (images, augmented))
    assert (after < before).all()


@pytest.mark.parametrize("horizontal_flip", [True, False])
def test_left_and_right_are_told_apart_unless_the_training_mirrors(horizontal_flip: bool) -> None:
    """Half of the images are bright on the left and the others on the right; mirrored, they look alike."""
    generator = np.random.default_rng(0)
    is_left = generator.random(120) < 0.5
    images = generator.integers(0, 100, (120, 8, 8, 1), dtype=np.uint8)
    images[is_left, :, :4] += 100
    images[~is_left, :, 4:] += 100
    params = small_params(classifier__epochs=8, classifier__batch_size=10).classifier
    table = pd.DataFrame({"Left": is_left.astype(int)})
    classifier = train_classifier(
        images[:100], table[:100], params, "float32", CPU, horizontal_flip=horizontal_flip, seed=0
    )
    found = judge(classifier, images[100:], 20).probabilities[:, 0].numpy() > 0.5
    accuracy = (found == is_left[100:]).mean()
    assert accuracy < 0.8 if horizontal_flip else accuracy > 0.9


def test_skill_table_matches_scikit_learn_and_counting() -> None:
    probabilities = torch.tensor([[0.9, 0.4, 0.3, 0.6], [0.5, 0.2, 0.6, 0.1], [0.7, 0.7, 0.7, 0.7]]).T
    has = pd.DataFrame({"Red": [1, 1, 0, 0], "Large": [1, 0, 0, 0], "Round": 1})
    table = skill_table(Judgement(torch.zeros(4, 1), probabilities.logit()), ("Red", "Large", "Round"), has)
    assert list(table.index) == ["Red", "Large"]  # all of these images are round
    np.testing.assert_allclose(table.to_numpy(), [[0.75, 0.5, 0.5], [2 / 3, 0, 2 / 3]])
    for name, column in (("Red", 0), ("Large", 1)):
        scores = probabilities[:, column].numpy()
        assert table.loc[name, "classifier_auc"] == roc_auc_score(has[name].to_numpy(dtype=bool), scores)


def test_skill_table_ranks_images_whose_probability_rounds_to_one() -> None:
    logits = torch.tensor([[20.0], [25.0], [-3.0]])  # the sigmoids of 20 and 25 are both 1 in float32
    table = skill_table(Judgement(torch.zeros(3, 1), logits), ("Red",), pd.DataFrame({"Red": [0, 1, 0]}))
    assert table.loc["Red", "classifier_auc"] == 1


def test_saved_classifier_loads_unchanged(tmp_path: Path) -> None:
    classifier, path = trained(), tmp_path / "classifier.safetensors"
    save_classifier(path, classifier, data_digest="a")
    loaded = load_classifier(path, data_digest="a")
    assert (loaded.image_size, loaded.attributes) == (16, classifier.attributes)
    assert torch.equal(judge(loaded, IMAGES, 50).probabilities, judge(classifier, IMAGES, 50).probabilities)


def test_classifier_of_another_set_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(UserError, match="classifier.safetensors is missing.*run `dvc repro classifier`"):
        load_classifier(path, data_digest="a")
    save_classifier(path, trained(), data_digest="a")
    with pytest.raises(UserError, match=r"was trained on another set \(a, not b\)"):
        load_classifier(path, data_digest="b")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        load_classifier(path, data_digest="a")


@pytest.mark.parametrize("channels", [1, 3])
def test_set_without_attributes_still_has_features(channels: int) -> None:
    images = disc_images(10, channels=channels)
    params = small_params().classifier
    classifier = train_classifier(
        images, pd.DataFrame(index=range(10)), params, "float32", CPU, horizontal_flip=False, seed=0
    )
    judgement = judge(classifier, images, 4)
    assert judgement.probabilities.shape == (10, 0)
    assert np.unique(judgement.features.numpy(), axis=0).shape[0] == 10


@pytest.mark.parametrize("num_steps", [5, 40, 57])
def test_one_cycle_matches_torch(num_steps: int) -> None:
    optimizer = torch.optim.Adam([torch.zeros(1)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, num_steps)
    for learning_rate, beta1 in one_cycle(0.3, num_steps):
        assert learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
        assert beta1 == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if schedule.last_epoch < num_steps - 1:
            schedule.step()
