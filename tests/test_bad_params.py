"""The catalogue of bad input, part 1: bad values in params.yaml, and files that are not params.yaml."""

import math
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import small_params, small_tree
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facevae.config.params import load_params, parse_params
from facevae.errors import UserError
from facevae.tracking.state import flatten
from facevae.train.schedules import learning_rate_factor

TEXT = yaml.safe_dump(small_tree(), sort_keys=False)
LAUGHS = "a: &a [ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in pairwise("abcdefghijk")
)

VALUES = [  # key, value, part of the error
    ("train.epochs", "abc", "train.epochs: 'abc' must be a valid integer"),
    ("train.epochs", 0, "train.epochs: 0 must be greater than 0"),
    ("train.epochs", 1.0, "train.epochs: 1.0 must be a valid integer"),
    ("train.epochs", True, "train.epochs: True must be a valid integer"),
    ("train.epochs", None, "train.epochs: None must be a valid integer"),
    ("train.epochs", 10**30, "must be less than 2147483648"),
    ("train.num_threads", 10**6, "train.num_threads: 1000000 must be less than or equal to 1024"),
    ("train.learning_rate", "fast", "train.learning_rate: 'fast' must be a valid number"),
    ("train.learning_rate", math.nan, "train.learning_rate: nan must be a finite number"),
    ("train.learning_rate", math.inf, "train.learning_rate: inf must be a finite number"),
    ("train.beta", 10**400, "00000000 must be a valid number"),
    ("train.likelihood", "laplace", "must be 'squared_error', 'gaussian' or 'bernoulli'"),
    ("train.likelihood", "x" * 10**6, "xxx...xxx"),
    ("train.horizontal_flip", "no", "train.horizontal_flip: 'no' must be a valid boolean"),
    ("train.foo", 1, "train.foo: 1 is an unknown key; allowed here: epochs, batch_size"),
    ("train", 3, "train: 3 must be a mapping"),
    ("data.source", "imagenet", "data.source: 'imagenet' must be 'avatars', 'celeba', 'mnist', 'folder' or 'parquet'"),
    ("data.channels", 2, "data.channels: 2 must be 1 or 3"),
    ("data.image_size", 10**9, "data.image_size: 1000000000 must be less than or equal to 1024"),
    ("data.test_fraction", 1.0, "data.test_fraction: 1.0 must be less than 1"),
    ("data.validation_fraction", 0, "data.validation_fraction: 0 must be greater than 0"),
    ("data.root", "", "data.root: '' must have at least 1 character"),
    ("data.root", "a\0b", "data.root: 'a\\x00b' must match pattern"),
    ("data.root", "\ud800", "data.root: '\\ud800' must be a valid string"),
    ("model.channels", [8, "16"], "model.channels.1: '16' must be a valid integer"),
    ("model.channels", 8, "model.channels: 8 must be a valid tuple"),
    ("model.channels", [8] * 5000, "must have at most 100 items, not 5000"),
    ("model.channels", [8, 10**9], "make a network of"),
    ("model.latent_dim", 10**9, "make a network of"),
    ("model.dropout", -0.1, "model.dropout: -0.1 must be greater than or equal to 0"),
    ("figures.strengths", [-1, 0], "figures.strengths"),
    ("figures.attributes", ["Bald", "Bald"], "figures.attributes: ['Bald', 'Bald'] has a value twice: remove one"),
    ("seed", -1, "seed: -1 must be greater than or equal to 0"),
    ("model.strides", [2], "model.strides: [2] has length 1, but model.channels [8, 16] has length 2"),
    ("data.image_size", 10, "data.image_size: 10 is not divisible by 4"),
    ("sharpen.epochs", -1, "sharpen.epochs: -1 must be greater than or equal to 0"),
    ("sharpen.batch_size", 1, "sharpen.batch_size: 1 must be greater than or equal to 2"),
    ("sharpen.muon_learning_rate", 0.0, "sharpen.muon_learning_rate: 0.0 must be greater than 0"),
    ("sharpen.discriminator_channels", [], "must have at least 1 item"),
    ("sharpen.feature_weight", math.nan, "sharpen.feature_weight: nan must be a finite number"),
    ("model.strides", [1, 2], "model.kernel_size: 4 is even, but a stride of 1 needs an odd kernel"),
    ("model.strides", [1, 2], "model.decoder_kernel_size: 4 is even, but a stride of 1 needs an odd kernel"),
    ("model.kernel_size", 1, "model.kernel_size: 1 is less than the stride 2"),
    ("model.decoder_kernel_size", 1, "model.decoder_kernel_size: 1 is less than the stride 2"),
    ("data.num_images", None, "data.num_images: null, but avatars are drawn on demand"),
    ("data.root", "~/faces", "data.root: '~/faces' begins with ~, which only a shell replaces: write the whole path"),
    ("data.root", "~anna/faces", "data.root: '~anna/faces' begins with ~"),
    ("data.root", "~", "data.root: '~' begins with ~"),
    ("data.keep_duplicates_together", None, "data.keep_duplicates_together: None must be a valid boolean"),
    ("data.keep_duplicates_together", 1, "data.keep_duplicates_together: 1 must be a valid boolean"),
    ("data.crop", 8, "data.crop: 8, but avatars are drawn at data.image_size"),
    ("data.split", "official", "data.split: 'official', but only celeba has an official split"),
    ("data.validation_fraction", 0.8, "leave nothing to train on"),
    ("data.test_fraction", 0, "evaluate.split: 'test', but data.test_fraction is 0"),
    ("train.likelihood", "bernoulli", "train.binarization: 'none', but train.likelihood 'bernoulli' needs black and"),
    ("train.binarization", "fixed", "train.binarization: 'fixed', but train.likelihood 'squared_error' models all"),
    ("train.kl_warmup_epochs", 2.5, "train.kl_warmup_epochs: 2.5 is longer than train.epochs 2, so the KL would never"),
    ("train.learning_rate_warmup_steps", 8, "train.learning_rate_warmup_steps: 8 is not below the number of steps, at"),
    ("train.micro_batch_size", 9, "train.micro_batch_size: 9 is larger than train.batch_size 8"),
    ("classifier.batch_size", 2, "classifier.batch_size: 2 may leave an image alone"),
    ("train.optimizer", "sgd", "train.optimizer: 'sgd' must be 'adam' or 'muon'"),
    ("train.optimizer", "muon", "train.muon_learning_rate: null, but train.optimizer is muon: set a number"),
    ("train.momentum", 0.95, "train.momentum: 0.95, but train.optimizer is adam: set it to null, or use muon"),
    ("train.momentum", 1.0, "train.momentum: 1.0 must be less than 1"),
    ("train.launcher", "", "train.launcher: '' must have at least 1 character"),
    ("tracking.experiment", "", "tracking.experiment: '' must have at least 1 character"),
    ("tracking.experiment", " ", "tracking.experiment: ' ' must have no space at its ends"),
    ("tracking.experiment", "a\nb", "tracking.experiment: 'a\\nb' must have no space at its ends, and no line break"),
    ("tracking.experiment", "\x1b[2J", "tracking.experiment: '\\x1b[2J' must have no space at its ends, and no line"),
    ("tracking.experiment", "x" * 257, "must have at most 256 characters"),
    ("tracking.experiment", None, "tracking.experiment: None must be a valid string"),
    ("figures.strengths", [1, 0, -1], "figures.strengths: [1.0, 0.0, -1.0] must rise from negative to positive"),
]

TEXTS = {  # name: the content of params.yaml, part of the error
    "empty": ("", "the whole file: None must be a mapping"),
    "a list": ("- 1", "the whole file: [1] must be a mapping"),
    "a key twice": (TEXT + "seed: 2", "the key 'seed' appears twice"),
    "an open bracket": ("seed: [", "is not valid YAML"),
    "a tab": ("data:\n\tsource: mnist", "cannot start any token"),
    "a NUL": ("seed: \0", "unacceptable character #x0000"),
    "a list as key": ("[a]: 1", "found unhashable key"),
    "a number as key": (TEXT + "1: 2", "1: 1 is an unknown key; allowed here: seed, data"),
    "two documents": (TEXT + "---\n" + TEXT, "expected a single document"),
    "an undefined alias": ("seed: *none", "found undefined alias"),
    "a list inside itself": ("a: &x [*x]", "a: [[[...]]] is an unknown key"),
    "billions of values": (LAUGHS, "k: [[[...], [...]"),
    "a merge key": (TEXT + "<<: {seed: 1}", "<<: {'seed': 1} is an unknown key"),
    "5,000 brackets": ("[" * 5000, "nested too deeply"),
    "5,000 digits": ("seed: " + "9" * 5000, "the value cannot be read as int"),
    "a wrong tag": ("seed: !!bool maybe", "the value cannot be read as bool"),
    "a tag of Python": ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
}

SCALARS = {  # text of train.learning_rate: its value, or part of the error
    "1e-5": 1e-5,
    "1E3": 1000.0,
    "1e400": "train.learning_rate: inf must be a finite number",
    ".nan": "train.learning_rate: nan must be a finite number",
    "NaN": "train.learning_rate: 'NaN' must be a valid number",
    "1_000": "train.learning_rate: '1_000' must be a valid number",
    "1:30": "train.learning_rate: '1:30' must be a valid number",
    "yes": "train.learning_rate: 'yes' must be a valid number",
    "2020-01-01": "train.learning_rate: '2020-01-01' must be a valid number",
    "0x10": 16.0,
    "0o17": 15.0,
    "-0x10": "train.learning_rate: '-0x10' must be a valid number",
    "0644": 644.0,
    "": "train.learning_rate: None must be a valid number",
}


@pytest.mark.parametrize(("key", "least"), [("batch_size", 2), ("micro_batch_size", 3)])
def test_batch_normalisation_of_one_pixel_needs_several_images(key: str, least: int) -> None:
    changes: dict[str, object] = {"model__normalization": "batch", "model__strides": [2, 4]}
    with pytest.raises(UserError, match=f"train.{key}: {least - 1} may leave an image alone"):
        small_params(**changes, **{f"train__{key}": least - 1})
    small_params(**changes, **{f"train__{key}": least})
    small_params(model__normalization="batch", **{f"train__{key}": 1})
    small_params(model__strides=[2, 4], **{f"train__{key}": 1})


@pytest.mark.parametrize(("clip", "skip", "allowed"), [(5, 5, False), (6, 5, False), (4, 5, True), (6, None, True)])
def test_clipping_above_the_skipped_norm_is_refused(clip: float, skip: float | None, allowed: bool) -> None:
    never = pytest.raises(UserError, match=f"train.clip_gradient_norm: {clip} never clips.*skip_gradient_norm {skip}")
    with nullcontext() if allowed else never:
        small_params(train__clip_gradient_norm=float(clip), train__skip_gradient_norm=skip and float(skip))


def test_each_level_of_the_discriminator_halves_the_images() -> None:
    small_params(sharpen__epochs=1, sharpen__discriminator_channels=[8, 8, 8])  # of 8 pixels
    small_params(sharpen__discriminator_channels=[8, 8, 8, 8])  # not used
    with pytest.raises(
        UserError, match=r"discriminator_channels: \[8, 8, 8, 8\] has 4 levels.*image_size is 8: remove"
    ):
        small_params(sharpen__epochs=1, sharpen__discriminator_channels=[8, 8, 8, 8])


def test_black_and_white_images_are_not_sharpened() -> None:
    binary = {"train__likelihood": "bernoulli", "train__binarization": "fixed"}
    small_params(**binary)
    with pytest.raises(UserError, match=r"sharpen\.epochs: 2, but train\.likelihood 'bernoulli'.*set it to 0"):
        small_params(**binary, sharpen__epochs=2)


def test_sharpening_takes_one_draw_and_the_encoder_s_latents() -> None:
    small_params(train__num_importance_samples=5)
    with pytest.raises(UserError, match=r"sharpen\.epochs: 2, but.*train\.num_importance_samples 5"):
        small_params(train__num_importance_samples=5, sharpen__epochs=2)
    with pytest.raises(UserError, match=r"sharpen\.epochs: 2, but with model\.refinement_steps 3"):
        small_params(model__refinement_steps=3, sharpen__epochs=2)


def test_latents_of_black_and_white_images_are_not_refined() -> None:
    binary = {"train__likelihood": "bernoulli", "train__binarization": "fixed"}
    with pytest.raises(UserError, match=r"model\.refinement_steps: 3, but refinement needs a squared error.*to 0"):
        small_params(**binary, model__refinement_steps=3)


def test_kl_warmup_as_long_as_the_training_is_allowed() -> None:
    small_params(train__kl_warmup_epochs=2.0)  # the last step has the full weight


def test_learning_rate_warmup_must_end_in_training() -> None:
    """At most 25 of the 40 images are trained on, in four batches of 8 in each of two epochs."""
    shorter = small_params(train__learning_rate_warmup_steps=7).train
    assert learning_rate_factor(shorter, 7, 8) == 1  # the last step
    with pytest.raises(UserError, match="8 is not below the number of steps, at most 8"):
        small_params(train__learning_rate_warmup_steps=8)
    small_params(data__source="folder", data__num_images=None, train__learning_rate_warmup_steps=1000)  # unknown yet


@pytest.mark.parametrize(("width", "allowed"), [(4, False), (8, False), (9, True), (16, True)])
def test_group_normalisation_of_single_values_is_refused(width: int, allowed: bool) -> None:
    changes: dict[str, object] = {"model__normalization": "group", "model__channels": [8, width]}
    one_pixel = pytest.raises(
        UserError, match=rf"model.channels: \[8, {width}\] has {width} where feature maps shrink to one"
    )
    with nullcontext() if allowed else one_pixel:
        small_params(**changes, model__strides=[2, 4])
    small_params(**changes)
    small_params(**changes | {"model__normalization": "none"}, model__strides=[2, 4])


@pytest.mark.parametrize(
    ("key", "value", "message"), VALUES, ids=[f"{key}={str(value)[:20]}" for key, value, _ in VALUES]
)
def test_a_bad_value_is_reported_with_key_and_reason(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        small_params(**{key.replace(".", "__"): value})
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_params_file_is_refused(tmp_path: Path, name: str) -> None:
    text, message = TEXTS[name]
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="params.yaml") as error:
        load_params(tmp_path / "params.yaml")
    assert message in str(error.value)
    assert len(str(error.value)) < 100_000


@pytest.mark.parametrize("scalar", SCALARS)
def test_scalars_follow_yaml_1_2(tmp_path: Path, scalar: str) -> None:
    expected = SCALARS[scalar]
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("learning_rate: 0.01", f"learning_rate: {scalar}"))
    if isinstance(expected, str):
        with pytest.raises(UserError) as error:
            load_params(path)
        assert expected in str(error.value)
    else:
        assert load_params(path).train.learning_rate == expected


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        (lambda text: "\ufeff" + text, "seed", 7),
        (lambda text: text.replace("\n", "\r\n"), "seed", 7),
        (lambda text: text.replace("experiment: tests", "experiment: no"), "tracking.experiment", "no"),
        (lambda text: text.replace("seed: 7", "seed: 0012"), "seed", 12),
    ],
    ids=["byte-order mark", "Windows line ends", "no", "0012"],
)
def test_an_unusual_params_file_is_read(tmp_path: Path, change: Any, key: str, expected: object) -> None:
    (tmp_path / "params.yaml").write_bytes(change(TEXT).encode())
    assert flatten(load_params(tmp_path / "params.yaml").model_dump())[key] == expected


def test_an_unreadable_params_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="params.yaml is not in .*: run this in the root folder of the project"):
        load_params(path)
    path.write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(UserError, match="params.yaml is not valid YAML: 'utf-8' codec can't decode"):
        load_params(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="params.yaml cannot be read: .*Is a directory"):
        load_params(path)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300) | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(flatten(small_tree()) | {"train": 0, "model": 0, "model.new": 0})), ANYTHING)
def test_any_value_is_accepted_or_refused_with_its_key(key: str, value: object) -> None:
    try:
        params = small_params(**{key.replace(".", "__"): value})
    except UserError as error:
        assert key in str(error)  # noqa: PT017
    else:
        section, _, name = key.partition(".")
        found = getattr(getattr(params, section), name) if name else getattr(params, section)
        assert list(found) == value if isinstance(found, tuple) else found == value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ANYTHING)
def test_a_random_tree_is_refused(tree: object) -> None:
    with pytest.raises(UserError, match="params.yaml has"):
        parse_params(tree, "params.yaml")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, len(TEXT)), st.integers(0, 5), st.text(max_size=3) | st.sampled_from(["&a ", "*a", "!!int ", "? "])
)
@example(0, 0, "---\n")
def test_an_edited_params_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, new: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_bytes((TEXT[:start] + new + TEXT[start + length :]).encode(errors="surrogatepass"))
    try:
        load_params(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
