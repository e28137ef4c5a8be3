import re
from pathlib import Path

import pytest
from conftest import ROOT, small_tree

from facevae.config.needs import needs_of
from facevae.config.params import load_params, parse_params
from facevae.errors import UserError
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


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_the_presets_for_own_images_need_no_attributes(source: str) -> None:
    params = load_params(ROOT / "presets" / f"{source}.yaml")
    assert params.data.source == source
    assert params.evaluate.attributes == params.figures.attributes == params.figures.latent_map_attributes == ()
    needs = needs_of(params)
    assert needs.varied == []
    assert set(needs.pairs) == {"train", "validation", "test"}


def test_only_the_sharp_presets_sharpen() -> None:
    sharpening = [path.name for path in COMMITTED if load_params(path).sharpen.epochs]
    assert sharpening == ["celeba-sharp-128.yaml", "celeba-sharp.yaml"]


def test_the_other_original_presets_keep_their_settings() -> None:
    script, mnist = (load_params(ROOT / "presets" / f"{name}.yaml") for name in ("celeba-script", "mnist"))
    assert script.model.channels == (128, 256, 256, 256, 256, 256)
    assert script.model.strides == (1, 2, 2, 2, 2, 1)
    assert (script.model.normalization, script.model.dropout, script.model.latent_dim) == ("batch", 0.2, 64)
    assert (script.data.crop, script.train.batch_size, script.train.epochs) == (128, 256, 240)
    assert (mnist.model.channels, mnist.model.strides, mnist.model.latent_dim) == ((64,) * 4, (1, 2, 2, 1), 2)
    assert (mnist.data.image_size, mnist.data.channels) == (28, 1)
    assert (mnist.train.batch_size, mnist.train.learning_rate, mnist.train.epochs) == (64, 0.0005, 200)


def test_all_bad_keys_are_listed_at_once() -> None:
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


def test_the_documentation_lists_every_key() -> None:
    sections = re.split("^## ", (ROOT / "docs" / "parameters.md").read_text(), flags=re.MULTILINE)
    listed = {section.partition("\n")[0]: re.findall(r"^\| `(\w+)` ", section, re.MULTILINE) for section in sections}
    for name, keys in small_tree().items():
        if isinstance(keys, dict):
            assert sorted(listed[name]) == sorted(keys)
