from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import disc_images, small_params
from PIL import Image
from typer.testing import CliRunner

from facevae import checkpoint
from facevae.attributes import FittedDirections, fit_directions, save_directions
from facevae.cli import app, run
from facevae.errors import UserError
from facevae.model import VAE, Posterior
from facevae.priors import fit_priors, save_priors


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained model, its directions, and two images, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    params = small_params()
    model = VAE(params.model, 8, 3)
    checkpoint.save(Path("models/vae.safetensors"), model, params.train, crop=12, fingerprint="abc")
    attributes = pd.DataFrame({"Smiling": [0, 1, 0, 1], "Eyeglasses": [0, 0, 1, 1]})
    posteriors = Posterior(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 3))
    directions = FittedDirections(fit_directions(posteriors.mean, attributes, 0.5), "joint")
    save_directions(Path("models/directions.safetensors"), directions, fingerprint="abc")
    save_priors(Path("models/priors.safetensors"), fit_priors(posteriors, posteriors, seed=0), fingerprint="abc")
    for name, pixels in zip(("a.png", "b.jpg"), disc_images(2, size=20), strict=True):
        Image.fromarray(pixels).save(name)
    return tmp_path


def call(*arguments: str) -> str:
    """The command's output; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["sample", "-n", "5", "--seed", "3"], "samples.png"),
        (["sample", "--prior", "normal"], "samples.png"),
        (["reconstruct", "a.png", "b.jpg"], "reconstructions.png"),
        (["interpolate", "a.png", "b.jpg", "-n", "4"], "interpolation.png"),
        (["edit", "a.png", "--add", "Smiling", "--strength", "1.5", "--remove", "Eyeglasses"], "edit.png"),
        (["edit", "a.png", "--add", "Smiling", "--method", "original"], "edit.png"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_each_command_writes_its_picture(arguments: list[str], output: str) -> None:
    assert call(*arguments).strip() == output
    first = Path(output).read_bytes()
    assert call(*arguments, "-o", "pictures/again.png").strip() == "pictures/again.png"
    assert Path("pictures/again.png").read_bytes() == first
    assert min(size_of(output)) > 60


@pytest.mark.usefixtures("folder")
def test_an_edit_moves_the_picture_and_more_strength_moves_it_further() -> None:
    for strength in ("0", "1", "4"):
        call("edit", "a.png", "--add", "Smiling", "--strength", strength, "-o", f"{strength}.png")
    contents = {Path(f"{strength}.png").read_bytes() for strength in ("0", "1", "4")}
    assert len(contents) == 3


@pytest.mark.usefixtures("folder")
def test_removing_is_adding_backwards() -> None:
    call("edit", "a.png", "--remove", "Smiling", "-o", "removed.png")
    call("edit", "a.png", "--add", "Smiling", "--strength", "-1", "-o", "added.png")
    assert Path("removed.png").read_bytes() == Path("added.png").read_bytes()


@pytest.mark.usefixtures("folder")
def test_images_are_cropped_as_in_training_unless_told_otherwise() -> None:
    for option in ([], ["--crop", "12"], ["--crop", "20"]):
        call("reconstruct", "a.png", *option, "-o", f"crop{''.join(option[1:])}.png")
    assert Path("crop.png").read_bytes() == Path("crop12.png").read_bytes() != Path("crop20.png").read_bytes()


@pytest.mark.usefixtures("folder")
def test_the_model_may_lie_elsewhere() -> None:
    Path("models").rename("elsewhere")
    call("edit", "a.png", "--add", "Smiling", "--model", "elsewhere/vae.safetensors")
    with pytest.raises(UserError, match="models/vae.safetensors is missing"):
        call("sample")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "a.png", "--add", "Smile"], "no attribute 'Smile'; there are: Eyeglasses, Smiling"),
        (["edit", "a.png", "--add", "Smiling", "--remove", "Smiling"], "Smiling: to be added and removed at once"),
        (["edit", "a.png"], "give --add ATTRIBUTE or --remove ATTRIBUTE"),
        (["edit", "a.png", "--add", "Smiling", "--directions", "no.safetensors"], "no.safetensors is missing"),
        (["edit", "a.png", "--add", "Smiling", "--directions", "a.png"], "a.png is damaged"),
        (["reconstruct", "missing.png"], "missing.png cannot be used"),
        (
            ["reconstruct", "models/vae.safetensors"],
            "models/vae.safetensors cannot be used: it is empty or not an image",
        ),
        (["reconstruct", "a.png", "--crop", "21"], "a.png cannot be used: it is 20 x 20 pixels, smaller than"),
        (["sample", "--priors", "no.safetensors"], "no.safetensors is missing"),
        (["sample", "--model", "a.png"], "a.png is damaged, or not a file of facevae"),
        (["sample", "-o", "samples.jpg"], "--output: samples.jpg does not end in .png"),
        (["sample", "-o", "a.png/samples.png"], "--output: a.png/samples.png cannot be written"),
        (["summary", "--params", "models"], "models cannot be read"),
        (["summary"], "params.yaml is not in"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_wrong_is_told_and_nothing_is_written(arguments: list[str], message: str) -> None:
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert message in str(error.value)
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.usefixtures("folder")
def test_the_command_ends_with_one_message_and_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["facevae", "reconstruct", "missing.png"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: missing.png cannot be used")


@pytest.mark.usefixtures("folder")
def test_directions_of_another_model_are_refused() -> None:
    directions = FittedDirections({"joint": {"Smiling": torch.ones(3)}}, "joint")
    save_directions(Path("models/directions.safetensors"), directions, fingerprint="other")
    with pytest.raises(UserError, match="belongs to another model"):
        call("edit", "a.png", "--add", "Smiling")


@pytest.mark.usefixtures("folder")
def test_another_prior_gives_other_samples() -> None:
    for prior in ("normal", "mixture", "flow"):
        call("sample", "-n", "3", "--prior", prior, "-o", f"{prior}.png")
    assert len({Path(f"{prior}.png").read_bytes() for prior in ("normal", "mixture", "flow")}) == 3
