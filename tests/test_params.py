import math
from pathlib import Path

import pytest
from conftest import ROOT, small_params, small_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from facevae.errors import UserError
from facevae.params import TrainParams, load_params, parse_params
from facevae.tracking.state import flatten

COMMITTED = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_params_file_is_valid(path: Path) -> None:
    load_params(path)


def test_celeba_preset_is_the_documented_original() -> None:
    params = load_params(ROOT / "presets" / "celeba.yaml")
    assert (params.data.image_size, params.data.channels) == (128, 3)
    assert params.model.channels == (128, 256, 256, 256)
    assert params.model.strides == (1, 2, 2, 1)
    assert (params.model.latent_dim, params.model.negative_slope, params.model.normalization) == (32, 0.01, "none")
    assert (params.train.batch_size, params.train.learning_rate, params.train.epochs) == (32, 0.0005, 200)
    assert (params.train.likelihood, params.train.beta) == ("squared_error", 1.0)
    assert (params.data.validation_fraction, params.data.test_fraction) == (0.2, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train__epochs", "abc", "train.epochs: 'abc' must be a valid integer"),
        ("train__epochs", 0, "train.epochs: 0 must be greater than 0"),
        ("train__epochs", 1.0, "train.epochs: 1.0 must be a valid integer"),
        ("train__epochs", True, "train.epochs: True must be a valid integer"),
        ("train__learning_rate", "fast", "train.learning_rate: 'fast' must be a valid number"),
        ("train__learning_rate", math.nan, "train.learning_rate: nan must be a finite number"),
        ("train__learning_rate", math.inf, "train.learning_rate: inf must be a finite number"),
        ("train__likelihood", "laplace", "must be 'squared_error', 'gaussian' or 'bernoulli'"),
        ("train__foo", 1, "train.foo: 1 is an unknown key; allowed here: epochs, batch_size"),
        ("train", 3, "train: 3 must be a mapping"),
        ("data__source", "imagenet", "data.source: 'imagenet' must be 'avatars', 'celeba', 'mnist' or 'folder'"),
        ("data__channels", 2, "data.channels: 2 must be 1 or 3"),
        ("data__test_fraction", 1.0, "data.test_fraction: 1.0 must be less than 1"),
        ("data__validation_fraction", 0, "data.validation_fraction: 0 must be greater than 0"),
        ("data__root", "", "data.root: '' must have at least 1 character"),
        ("model__channels", [8, "16"], "model.channels.1: '16' must be a valid integer"),
        ("model__channels", 8, "model.channels: 8 must be a valid tuple"),
        ("model__dropout", -0.1, "model.dropout: -0.1 must be greater than or equal to 0"),
        ("figures__strengths", [-1, 0], "figures.strengths"),
        ("seed", -1, "seed: -1 must be greater than or equal to 0"),
    ],
)
def test_a_bad_value_is_told_by_key_value_and_what_is_allowed(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        small_params(**{key: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__strides": [2]}, "model.strides: [2] has 1 values and model.channels [8, 16] has 2"),
        ({"data__image_size": 10}, "data.image_size: 10 is not divisible by 4"),
        ({"model__strides": [1, 2]}, "model.kernel_size: 4 is even, and a stride of 1 needs an odd kernel"),
        ({"model__kernel_size": 1}, "model.kernel_size: 1 is smaller than the stride 2"),
        ({"data__num_images": None}, "data.num_images: null, but avatars are drawn on demand"),
        ({"data__crop": 8}, "data.crop: 8, but avatars are drawn at data.image_size"),
        ({"data__split": "official"}, "data.split: 'official', but only celeba has a partition of its own"),
        ({"data__validation_fraction": 0.8}, "leave nothing to train on"),
        ({"data__test_fraction": 0}, "evaluate.split: 'test', but data.test_fraction is 0"),
        (
            {"train__likelihood": "bernoulli"},
            "train.binarization: 'none', but train.likelihood 'bernoulli' is for black and white",
        ),
        (
            {"train__binarization": "fixed"},
            "train.binarization: 'fixed', but train.likelihood 'squared_error' is for all intensities",
        ),
        ({"figures__strengths": [1, 0, -1]}, "figures.strengths: [1.0, 0.0, -1.0] must rise from negative to positive"),
    ],
)
def test_values_at_odds_with_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        small_params(**changes)
    assert message in str(error.value)


def test_the_other_presets_are_the_originals_too() -> None:
    script, mnist = (load_params(ROOT / "presets" / f"{name}.yaml") for name in ("celeba-script", "mnist"))
    assert script.model.channels == (128, 256, 256, 256, 256, 256)
    assert script.model.strides == (1, 2, 2, 2, 2, 1)
    assert (script.model.normalization, script.model.dropout, script.model.latent_dim) == ("batch", 0.2, 64)
    assert (script.data.crop, script.train.batch_size, script.train.epochs) == (128, 256, 240)
    assert (mnist.model.channels, mnist.model.strides, mnist.model.latent_dim) == ((64,) * 4, (1, 2, 2, 1), 2)
    assert (mnist.data.image_size, mnist.data.channels) == (28, 1)
    assert (mnist.train.batch_size, mnist.train.learning_rate, mnist.train.epochs) == (64, 0.0005, 200)


def test_all_bad_keys_are_told_at_once() -> None:
    tree = small_tree(train__epochs="abc", data__source="x", seed=None)
    del tree["model"]["dropout"]
    with pytest.raises(UserError) as error:
        parse_params(tree, "my.yaml")
    assert "my.yaml has 4 invalid value(s)" in str(error.value)
    for key in ("train.epochs", "data.source", "seed", "model.dropout: missing"):
        assert key in str(error.value)


@pytest.mark.parametrize("key", sorted(flatten(small_tree())))
def test_every_key_is_required(key: str) -> None:
    tree = small_tree()
    section = tree
    *sections, name = key.split(".")
    for part in sections:
        section = section[part]
    del section[name]
    with pytest.raises(UserError, match=rf"{key}: missing"):
        parse_params(tree, "params.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the whole file"),
        ("- 1", "the whole file"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice"),
        ("seed: [", "is not valid YAML"),
        ("a: &x [*x]", "params"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="params.yaml") as error:
        load_params(path)
    assert message in str(error.value)


def test_a_missing_file_is_told_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run from the root of the project"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("scalar", "key", "expected"),
    [("1e-5", "train.learning_rate", 1e-5), ("0012", "train.epochs", 12), ("1E3", "train.learning_rate", 1000.0)],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, scalar: str, key: str, expected: float) -> None:
    text = (ROOT / "params.yaml").read_text()
    name = key.split(".")[1]
    lines = [f"  {name}: {scalar}" if line.startswith(f"  {name}: ") else line for line in text.splitlines()]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    assert flatten(load_params(path).model_dump())[key] == expected


def test_no_is_a_string_and_not_false(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("experiment: facevae", "experiment: no"))
    assert load_params(path).tracking.experiment == "no"


@settings(deadline=None)  # the machine may be busy
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_any_value_either_fits_or_is_refused_with_its_key(value: object) -> None:
    for key in TrainParams.model_fields:
        try:
            params = small_params(**{f"train__{key}": value})
        except UserError as error:
            assert f"train.{key}" in str(error)  # noqa: PT017
        else:
            found = getattr(params.train, key)
            assert found == (float(value) if isinstance(found, float) and isinstance(value, int) else value)
