"""The Python API's class, held against the library's own functions and against arithmetic on latents."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import disc_images, small_params
from numpy.typing import NDArray
from PIL import Image

import facevae
from facevae.data.image_file import fit_image, read_image
from facevae.errors import UserError
from facevae.evaluate.directions import Directions, FittedDirections, load_directions, save_directions
from facevae.face_model import FaceModel
from facevae.model import checkpoint
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, new_model
from facevae.priors.fitting import load_priors

IMAGES = disc_images(3, seed=5)
FINGERPRINT = "abc"


@pytest.fixture(scope="module")
def model(trained: Path) -> FaceModel:
    return facevae.load(trained / "models" / "vae.safetensors")


@pytest.fixture(scope="module")
def network(trained: Path) -> VAE:
    return checkpoint.load(trained / "models" / "vae.safetensors")[0]


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy of the folder of weights, priors and directions."""
    return shutil.copytree(trained / "models", tmp_path / "models")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


def differ_by_rounding(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Whether two pictures of the same shape are at most one level apart, as after sums in another order."""
    return first.shape == second.shape and np.abs(first.astype(int) - second).max() <= 1


def test_model_tells_its_shapes_and_attributes(model: FaceModel) -> None:
    assert model.image_shape == (8, 8, 3)
    assert model.latent_dim == 3
    assert model.attributes == ["Eyeglasses", "Smiling"]


@pytest.mark.parametrize("prior", ["normal", "mixture", "flow", "best"])
def test_samples_are_decoded_draws_from_the_prior(model: FaceModel, network: VAE, trained: Path, prior: str) -> None:
    fitted = load_priors(trained / "models" / "priors.safetensors", fingerprint=FINGERPRINT)
    chosen = fitted.priors[fitted.best if prior == "best" else prior]
    latent = chosen.sample(5, torch.Generator().manual_seed(3))
    faces = model.sample(5, seed=3, prior=prior)
    assert faces.dtype == np.uint8
    assert faces.shape == (5, 8, 8, 3)
    assert np.array_equal(faces, decode_all(network, latent))
    assert np.array_equal(faces, model.sample(np.int64(5), seed=np.uint8(3), prior=prior))
    assert not np.array_equal(faces, model.sample(5, seed=4, prior=prior))


def test_samples_may_be_asked_for_attributes_at_a_temperature(model: FaceModel, network: VAE, trained: Path) -> None:
    flow = load_priors(trained / "models" / "priors.safetensors", fingerprint=FINGERPRINT).flow
    asked = flow.given(present=["Smiling"], absent=["Eyeglasses"])
    latent = asked.sample(5, torch.Generator().manual_seed(3), temperature=0.5)
    faces = model.sample(5, seed=3, temperature=0.5, present=["Smiling"], absent=["Eyeglasses"])
    assert np.array_equal(faces, decode_all(network, latent))


def test_a_walk_passes_draws_and_ends_where_it_began(model: FaceModel) -> None:
    frames = model.walk(3, 50, num_faces=2, seed=4)
    assert frames.shape == (150, 2, 8, 8, 3)
    steps = np.abs(np.diff(np.concatenate([frames, frames[:1]]).astype(int), axis=0)).max()
    assert steps < np.abs(frames[0].astype(int) - frames[50]).max()
    still = model.walk(2, 2, temperature=0)
    assert np.array_equal(still, still[:1].repeat(4, axis=0))


def test_latents_are_posterior_means(model: FaceModel, network: VAE) -> None:
    latent = model.encode(IMAGES)
    assert latent.dtype == np.float32
    assert latent.shape == (3, 3)
    with torch.no_grad():
        mean = network.encode(to_unit_range(IMAGES, torch.device("cpu"))).mean
    assert latent == pytest.approx(mean.numpy(), rel=1e-4, abs=1e-5)


def test_reconstructions_are_decoded_latents(model: FaceModel, network: VAE) -> None:
    latent = model.encode(IMAGES)
    assert np.array_equal(model.reconstruct(IMAGES), model.decode(latent))
    assert np.array_equal(model.reconstruct(IMAGES), decode_all(network, torch.from_numpy(latent)))
    for dtype in ("float64", "longdouble", ">f4"):
        assert np.array_equal(model.decode(latent.astype(dtype)), model.decode(latent))


def test_single_images_and_latents_are_batches_of_one(model: FaceModel) -> None:
    latent = model.encode(IMAGES[1])
    assert latent.shape == (1, 3)
    assert np.array_equal(latent, model.encode(IMAGES[1:2]))
    assert np.array_equal(model.decode(latent[0]), model.decode(latent))


def test_images_may_be_a_read_only_memory_map(model: FaceModel, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    assert np.array_equal(model.encode(np.load(tmp_path / "images.npy", mmap_mode="r")), model.encode(IMAGES))


def test_files_are_cropped_and_resized_as_in_training(model: FaceModel, trained: Path) -> None:
    for crop, expected in ((None, 12), (20, 20)):
        prepared = model.prepare(trained / "a.png", crop=crop)
        assert np.array_equal(prepared[0], fit_image(read_image(trained / "a.png"), 8, 3, expected))


@pytest.mark.parametrize("scale", [2, 10, 150])
def test_a_photograph_is_cropped_in_proportion(model: FaceModel, trained: Path, scale: int, tmp_path: Path) -> None:
    """Of 20 pixels, training kept 12: of a photograph of 3,000 pixels, 1,800 are kept."""
    side = 20 * scale
    with Image.open(trained / "a.png") as small:
        large = small.resize((side, side), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (2 * side, side), "red")
    wide.paste(large, (side // 2, 0))
    wide.save(tmp_path / "phone.png")
    kept = large.crop((4 * scale, 4 * scale, 16 * scale, 16 * scale))
    expected = np.asarray(kept.resize((8, 8), Image.Resampling.BOX), dtype=int)
    prepared = model.prepare(tmp_path / "phone.png")[0].astype(int)
    assert np.abs(prepared - expected).mean() < 10


def test_an_image_below_the_crop_names_the_option(model: FaceModel, trained: Path) -> None:
    message = refusal(lambda: model.prepare(trained / "a.png", crop=21))
    assert "a.png cannot be used: it is 20 x 20 pixels, smaller than the crop 21: lower it (--crop)" in message


def test_arrays_files_and_pillow_images_are_the_same(model: FaceModel, trained: Path) -> None:
    path = trained / "a.png"
    prepared = model.prepare(path)
    with Image.open(path) as image:
        for images in (str(path), image, [image], (path,), [prepared[0]], prepared, iter([path])):
            assert np.array_equal(model.prepare(images), prepared)
    mixed = model.prepare([trained / "b.jpg", str(path), prepared[0]])
    assert np.array_equal(mixed, np.concatenate([model.prepare(trained / "b.jpg"), prepared, prepared]))


def test_pillow_images_are_turned_upright_and_laid_over_white(model: FaceModel) -> None:
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[:6] = 255, 0, 0, 255  # red above, transparent below
    image = Image.fromarray(pixels)
    assert np.array_equal(model.prepare(image)[0, [0, -1]], np.broadcast_to([[[255, 0, 0]], [[255] * 3]], (2, 8, 3)))
    image.getexif()[0x0112] = 3  # EXIF orientation: upside down
    assert np.array_equal(model.prepare(image)[0, [-1, 0]], np.broadcast_to([[[255, 0, 0]], [[255] * 3]], (2, 8, 3)))


@pytest.mark.parametrize("binarization", ["threshold", "fixed", "per_epoch"])
def test_models_of_black_and_white_images_see_no_grey(tmp_path: Path, binarization: str) -> None:
    params = small_params(data__channels=1, train__likelihood="bernoulli", train__binarization=binarization)
    path = tmp_path / "vae.safetensors"
    checkpoint.save(path, new_model(params.model, 8, 1, seed=0), params.train, crop=None, fingerprint=FINGERPRINT)
    model = facevae.load(path)
    grey = np.linspace(0, 255, 128, dtype=np.uint8).reshape(2, 8, 8, 1)
    prepared = model.prepare(grey)
    assert set(np.unique(prepared)) == {0, 255}
    assert np.array_equal(model.prepare(prepared), prepared)
    assert np.array_equal(model.encode(grey), model.encode(prepared))
    assert model.sample(2, prior="normal").shape == (2, 8, 8, 1)


def test_edits_move_latents_along_directions(model: FaceModel, network: VAE, trained: Path) -> None:
    fitted = load_directions(trained / "models" / "directions.safetensors", fingerprint=FINGERPRINT)
    mean = encode_all(network, IMAGES).mean
    cases: list[tuple[str, Directions]] = [("best", fitted.by_method[fitted.best]), *fitted.by_method.items()]
    for method, directions in cases:
        moved = mean + 1.5 * directions["Smiling"] - 0.5 * directions["Eyeglasses"]
        edited = model.edit(IMAGES, add={"Smiling": 1.5}, remove={"Eyeglasses": 0.5}, method=method)
        assert differ_by_rounding(edited, decode_all(network, moved))


def test_an_edit_of_strength_zero_is_the_reconstruction(model: FaceModel) -> None:
    assert np.array_equal(model.edit(IMAGES, add={"Smiling": 0}), model.reconstruct(IMAGES))
    assert not np.array_equal(model.edit(IMAGES, add={"Smiling": 4}), model.reconstruct(IMAGES))


def test_interpolation_runs_from_one_reconstruction_to_the_other(model: FaceModel) -> None:
    steps = model.interpolate(IMAGES[0], IMAGES[1:2], 5)
    first, last = model.encode(IMAGES[:2])
    assert steps.shape == (5, 8, 8, 3)
    assert differ_by_rounding(steps[[0, -1]], model.reconstruct(IMAGES[:2]))
    assert differ_by_rounding(steps[[2]], model.decode((first + last) / 2))
    assert model.interpolate(IMAGES[0], IMAGES[1]).shape == (8, 8, 8, 3)


def test_priors_and_directions_are_read_only_when_needed(models: Path) -> None:
    for name in ("priors", "directions"):
        (models / f"{name}.safetensors").unlink()
    model = facevae.load(str(models / "vae.safetensors"))
    assert model.sample(2, prior="normal").shape == model.reconstruct(IMAGES[:2]).shape
    message = refusal(lambda: model.sample(2))
    assert f"{models / 'priors.safetensors'} is missing" in message
    assert "`dvc repro evaluate`" in message
    assert "'normal'" in message
    message = refusal(lambda: model.edit(IMAGES, add={"Smiling": 1.0}))
    assert f"{models / 'directions.safetensors'} is missing" in message
    assert "`dvc repro evaluate`" in message


def test_priors_and_directions_may_lie_elsewhere(model: FaceModel, models: Path, tmp_path: Path) -> None:
    for name in ("priors", "directions"):
        (models / f"{name}.safetensors").rename(tmp_path / name)
    moved = facevae.load(
        models / "vae.safetensors", priors=tmp_path / "priors", directions=str(tmp_path / "directions")
    )
    assert np.array_equal(moved.sample(2), model.sample(2))
    assert moved.attributes == model.attributes


def test_files_of_another_model_are_refused(models: Path) -> None:
    directions = FittedDirections({"joint": {"Smiling": torch.ones(3)}}, "joint")
    save_directions(models / "directions.safetensors", directions, fingerprint="other")
    model = facevae.load(models / "vae.safetensors")
    assert "directions.safetensors" in refusal(lambda: model.attributes)


def test_weights_that_are_missing_or_damaged_are_refused(models: Path) -> None:
    path = models / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert str(path) in refusal(lambda: facevae.load(path))
    assert "no.safetensors is missing" in refusal(lambda: facevae.load("no.safetensors"))


@pytest.mark.parametrize("device", ["other", "cuda:99"])
def test_devices_that_torch_cannot_use_are_refused(trained: Path, device: str) -> None:
    message = refusal(lambda: facevae.load(trained / "models" / "vae.safetensors", device=device))
    assert message.startswith(f"device: '{device}' cannot be used")


BAD_IMAGES = [
    (IMAGES / 255, "images: dtype float64 is not uint8"),
    (IMAGES[:, :4], "images: shape (3, 4, 8, 3) does not fit the model; use (8, 8, 3) or (N, 8, 8, 3)"),
    (IMAGES[None], "images: shape (1, 3, 8, 8, 3) does not fit the model"),
    (IMAGES[0, :, :, 0], "images: shape (8, 8) does not fit the model"),
    (IMAGES[:0], "images: there are none"),
    ([], "images: there are none"),
    ([IMAGES[0], IMAGES[1] / 255], "images[1]: dtype float64 is not uint8"),
    ([IMAGES[0], IMAGES], "images[1]: shape (3, 8, 8, 3) is a batch"),
    ([IMAGES[0], None], "images[1]: NoneType is not an image"),
    (7, "images: int is not an image; use a uint8 array, a Pillow image or a path"),
    (torch.zeros(1, 3, 8, 8), "images[0]: Tensor is not an image"),
    ("missing.png", "missing.png cannot be used"),
    ([Image.new("RGB", (20, 20)), Image.new("RGB", (0, 0))], "images[1] cannot be used: it has no pixels"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_images_that_do_not_fit_are_refused(model: FaceModel, images: Any, message: str) -> None:
    assert message in refusal(lambda: model.encode(images))


BAD_LATENTS = [
    ([[1, 2, 3]], "latent: dtype int64 is not floating point"),
    (["a"], "latent: dtype <U1 is not floating point"),
    ([1.0, 2.0], "latent: shape (2,) does not fit the model; use (N, 3) with N of 1 or more, or (3,)"),
    (np.zeros((0, 3)), "latent: shape (0, 3) does not fit the model"),
    (np.zeros((2, 2, 3)), "latent: shape (2, 2, 3) does not fit the model"),
    (0.0, "latent: shape () does not fit the model"),
    ([0.0, float("nan"), 0.0], "latent: not every value is finite"),
    ([0.0, 1e300, 0.0], "latent: not every value is finite"),
]


@pytest.mark.parametrize(("latent", "message"), BAD_LATENTS)
def test_latents_that_do_not_fit_are_refused(model: FaceModel, latent: Any, message: str) -> None:
    assert message in refusal(lambda: model.decode(latent))


BAD_EDITS: list[tuple[dict[str, Any], str]] = [
    ({}, "no attribute to add or remove"),
    ({"add": {}}, "no attribute to add or remove"),
    ({"add": ["Smiling"]}, "edit: add is ['Smiling']; use strengths by attribute"),
    ({"add": {"Smile": 1.0}}, "Eyeglasses, Smiling"),
    ({"remove": {"Smile": 1.0}}, "'Smile'"),
    ({"add": {"Smiling": 1.0}, "remove": {"Smiling": 1.0}}, "Smiling is both added and removed"),
    ({"add": {"Smiling": float("nan")}}, "strength nan of Smiling"),
    ({"remove": {"Smiling": float("-inf")}}, "strength -inf of Smiling"),
    ({"add": {"Smiling": 1001}}, "strength 1001 of Smiling; use a number from -1000 to 1000"),
    ({"add": {"Smiling": "much"}}, "strength 'much' of Smiling"),
    ({"add": {"Smiling": 1.0}, "method": "other"}, "method: 'other' is unknown; use one of best, original, difference"),
]


@pytest.mark.parametrize(("options", "message"), BAD_EDITS)
def test_edits_that_make_no_sense_are_refused(model: FaceModel, options: dict[str, Any], message: str) -> None:
    assert message in refusal(lambda: model.edit(IMAGES, **options))


def test_numbers_out_of_range_are_refused(model: FaceModel) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: model.sample(0), "num_samples: 0 is out of range; use 1 to 2147483647"),
        (lambda: model.sample(2.5), "num_samples: 2.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: model.sample(2**70), "num_samples: 1180591620717411303424 is out of range"),
        (lambda: model.sample(2, seed=-1), "seed: -1 is out of range; use 0 to 4294967295"),
        (lambda: model.sample(2, seed=2**32), "seed: 4294967296 is out of range"),
        (lambda: model.sample(2, prior="gamma"), "prior: 'gamma' is unknown; use one of best, normal, mixture, flow"),
        (lambda: model.sample(2, temperature=-0.5), "temperature: -0.5 is out of range; use a number from 0 to 2"),
        (lambda: model.sample(2, temperature=float("nan")), "temperature: nan is out of range"),
        (lambda: model.sample(2, present="Smiling"), "present: 'Smiling' is a single string; use a list"),
        (lambda: model.sample(2, absent=["Smile"]), "unknown attribute 'Smile'. Known attributes: Eyeglasses, Smiling"),
        (lambda: model.walk(1), "num_stops: 1 is out of range; use 2 to"),
        (lambda: model.interpolate(IMAGES[0], IMAGES[1], 1), "num_steps: 1 is out of range; use 2 to"),
        (lambda: model.interpolate(IMAGES[:2], IMAGES[2]), "interpolate: 2 and 1 images; pass one image for each end"),
        (lambda: model.prepare(IMAGES, crop=0), "crop: 0 is out of range; use 1 to"),
    ]
    for call, message in calls:
        assert message in refusal(call)
