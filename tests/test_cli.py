import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import small_params, small_tree
from PIL import Image
from typer.testing import CliRunner

import facevae
from facevae.cli import app, run
from facevae.errors import UserError
from facevae.evaluate.directions import FittedDirections, save_directions
from facevae.figures.png import save_tiles
from facevae.model.vae import VAE


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder `trained`, which is the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
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
        (["sample", "--temperature", "0.5", "--with", "Smiling", "--without", "Eyeglasses"], "samples.png"),
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
def test_more_strength_moves_an_edit_further() -> None:
    pictures = []
    for strength in ("0", "1", "4"):
        call("edit", "a.png", "--add", "Smiling", "--strength", strength, "-o", f"{strength}.png")
        with Image.open(f"{strength}.png") as picture:
            pictures.append(np.array(picture, dtype=float))
    unmoved, once, further = pictures
    assert 0 < np.abs(once - unmoved).mean() < np.abs(further - unmoved).mean()


def test_summary_counts_the_weights_of_the_params_model(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(small_tree(model__latent_dim=5), sort_keys=False))
    num_weights = sum(weight.numel() for weight in VAE(small_params(model__latent_dim=5).model, 8, 3).parameters())
    assert f"{num_weights:,}" in call("summary", "--params", str(path))


def test_project_commands_pass_on_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").touch()
    monkeypatch.setattr("facevae.tracking.sync.sync", lambda folder, revisions, report: report(f"{folder} {revisions}"))
    monkeypatch.setattr("facevae.tracking.where.where", lambda folder, run: f"{folder} {run}")
    monkeypatch.setattr("facevae.tracking.mending.mend", lambda folder: [f"{folder} mended"])
    assert call("sync") == ". []\n"
    assert call("sync", "--rev", "a", "--rev", "b") == ". ['a', 'b']\n"
    assert call("where", "beta-1") == ". beta-1\n"
    assert call("mend") == ". mended\n"


def test_check_accepts_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(small_tree(data__root=str(tmp_path))))
    assert call("check", "--params", str(path)) == ""


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            "~/faces",
            "data.root: '~/faces' begins with ~, which only a shell replaces: write the whole path",
        ),
        ("a.zip", "data.root: a.zip is not a folder: set it to the folder with the data of source avatars"),
        ("missing", "data.root: missing does not exist in "),
        ("$HOME/faces", "data.root: $HOME/faces does not exist in "),
    ],
)
def test_check_says_what_is_wrong_with_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.zip").touch()
    Path("params.yaml").write_text(yaml.safe_dump(small_tree(data__root=root)))
    with pytest.raises(UserError) as error:
        call("check")
    assert message in str(error.value)


@pytest.mark.usefixtures("folder")
def test_removing_is_adding_with_negative_strength() -> None:
    call("edit", "a.png", "--remove", "Smiling", "-o", "removed.png")
    call("edit", "a.png", "--add", "Smiling", "--strength", "-1", "-o", "added.png")
    assert Path("removed.png").read_bytes() == Path("added.png").read_bytes()


@pytest.mark.usefixtures("folder")
def test_crop_defaults_to_that_of_training() -> None:
    for option in ([], ["--crop", "12"], ["--crop", "20"]):
        call("reconstruct", "a.png", *option, "-o", f"crop{''.join(option[1:])}.png")
    assert Path("crop.png").read_bytes() == Path("crop12.png").read_bytes() != Path("crop20.png").read_bytes()


@pytest.mark.usefixtures("folder")
def test_model_option_names_another_folder() -> None:
    Path("models").rename("elsewhere")
    call("edit", "a.png", "--add", "Smiling", "--model", "elsewhere/vae.safetensors")
    with pytest.raises(UserError, match="models/vae.safetensors is missing"):
        call("sample")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("output", ["walk.gif", "walk.webp"])
def test_a_walk_is_an_animation_with_the_frames_of_the_python_api(output: str) -> None:
    arguments = ["walk", "--num-stops", "2", "--num-steps", "3", "-n", "2", "--with", "Smiling", "-o", output]
    assert call(*arguments).strip() == output
    first = Path(output).read_bytes()
    call(*arguments)
    assert Path(output).read_bytes() == first
    frames = facevae.load("models/vae.safetensors").walk(2, 3, num_faces=2, present=["Smiling"])
    with Image.open(output) as animation:
        assert 2 < animation.n_frames <= 6  # type: ignore[attr-defined] # WebP joins frames that look alike
        shown = np.asarray(animation.convert("RGB"))[:160, :160]
    expected = frames[0, 0].repeat(20, axis=0).repeat(20, axis=1)
    assert np.abs(shown.astype(int) - expected).mean() < 20  # of 255: both formats lose colours


BAD = [  # arguments, part of the error's message
    ("sample --with Smile", "unknown attribute 'Smile'. Known attributes: Eyeglasses, Smiling"),
    ("sample --with Smiling --without Smiling", "Smiling is both present and absent"),
    ("sample --with Smiling --prior mixture", "prior: 'mixture' knows no attributes; use 'flow'"),
    ("walk -o walk.png", "walk.png ends neither in .gif nor in .webp"),
    ("walk -o a.png/walk.gif", "--output: a.png/walk.gif cannot be written"),
    ("edit a.png --add Smile", "Eyeglasses, Smiling"),
    ("edit a.png --add Smiling --remove Smiling", "Smiling is both added and removed"),
    ("edit a.png", "no attribute to add or remove"),
    ("edit a.png --add Smiling --directions no.safetensors", "no.safetensors is missing"),
    ("edit a.png --add Smiling --directions a.png", "a.png is damaged"),
    ("edit a.png --add Smiling --strength nan", "strength nan of Smiling; use a number from -1000 to 1000"),
    ("edit a.png --add Smiling --strength inf", "strength inf of Smiling; use a number from -1000 to 1000"),
    ("edit a.png --add Smiling --strength -1e300", "strength -1e+300 of Smiling; use a number from -1000 to 1000"),
    ("edit empty.png --add Smiling", "empty.png cannot be used: it is empty or not an image"),
    ("reconstruct missing.png", "missing.png cannot be used: it cannot be decoded: No such file or directory"),
    ("reconstruct a.png models", "models cannot be used: it is not a file"),
    ("reconstruct models/vae.safetensors", "models/vae.safetensors cannot be used: it is empty or not an image"),
    ("reconstruct a.png --crop 21", "a.png cannot be used: it is 20 x 20 pixels, smaller than"),
    ("interpolate a.png empty.png", "empty.png cannot be used: it is empty or not an image"),
    ("sample --priors no.safetensors", "no.safetensors is missing"),
    ("sample --priors no.safetensors", "use the prior 'normal'"),
    ("sample --priors models", "models is not a file: "),
    ("sample --model no.safetensors", "no.safetensors is missing"),
    ("sample --model a.png", "a.png is damaged, or was not written by facevae"),
    ("sample --model models", "models is not a file: run `dvc repro train`"),
    ("sample -o samples.jpg", "--output: samples.jpg does not end in .png"),
    ("sample -o a.png/samples.png", "--output: a.png/samples.png cannot be written"),
    ("sample -o models", "--output: models does not end in .png"),
    ("sample -o folder.png", "--output: folder.png cannot be written"),
    ("summary --params models", "models cannot be read"),
    ("summary --params a.png", "a.png is not valid YAML"),
    ("summary", "params.yaml is not in"),
    ("sync", "dvc.yaml is not in"),
    ("where run", "dvc.yaml is not in"),
]
MISUSED = [  # arguments, part of the output
    ("sample -n 0", "'--num-samples' / '-n': Input should be greater than or equal to 1"),
    ("sample -n 1000000000", "'--num-samples' / '-n': Input should be less than or equal to 3000"),
    ("sample -n many", "'--num-samples' / '-n': Input should be a valid integer"),
    ("sample --seed -1", "'--seed': Input should be greater than or equal to 0"),
    ("sample --seed 4294967296", "'--seed': Input should be less than or equal to 4294967295"),
    ("sample --temperature 3", "'--temperature': Input should be less than or equal to 2"),
    ("walk --num-stops 1", "'--num-stops': Input should be greater than or equal to 2"),
    ("sample --prior gamma", "'gamma' is not one of 'best', 'normal', 'mixture', 'flow'"),
    ("sample --unknown", "No such option: --unknown"),
    ("interpolate a.png", "Missing argument 'second'"),
    ("interpolate a.png b.jpg -n 1", "'--num-steps' / '-n': Input should be greater than or equal to 2"),
    ("interpolate a.png b.jpg -n 100000", "'--num-steps' / '-n': Input should be less than or equal to 300"),
    ("reconstruct", "Missing argument 'images'"),
    ("reconstruct a.png --crop 0", "'--crop': Input should be greater than or equal to 1"),
    ("edit a.png --add Smiling --strength much", "'--strength': Input should be a valid number"),
    ("edit a.png --add Smiling --method other", "'other' is not one of"),
    ("draw", "No such command 'draw'"),
]


def contents() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path.cwd().rglob("*")}


@pytest.mark.parametrize(("arguments", "message"), BAD)
@pytest.mark.usefixtures("folder")
def test_bad_input_raises_one_message_and_writes_nothing(arguments: str, message: str) -> None:
    Path("empty.png").touch()
    Path("folder.png").mkdir()
    before = contents()
    with pytest.raises(UserError) as error:
        call(*arguments.split())
    assert message in str(error.value)
    assert contents() == before


@pytest.mark.parametrize(("arguments", "message"), MISUSED)
@pytest.mark.usefixtures("folder")
def test_misuse_exits_with_status_two(arguments: str, message: str) -> None:
    before = contents()
    result = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output
    assert contents() == before


@pytest.mark.usefixtures("folder")
def test_more_images_than_a_picture_holds_are_refused() -> None:
    with pytest.raises(UserError, match="wide.png would be .* pixels, but a side can have at most 65000"):
        call("reconstruct", *["a.png"] * 450, "-o", "wide.png")
    assert not Path("wide.png").exists()


@pytest.mark.usefixtures("folder")
def test_user_errors_exit_with_one_line_and_status_one(
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
def test_each_prior_gives_other_samples() -> None:
    for prior in ("normal", "mixture", "flow"):
        call("sample", "-n", "3", "--prior", prior, "-o", f"{prior}.png")
    assert len({Path(f"{prior}.png").read_bytes() for prior in ("normal", "mixture", "flow")}) == 3


def test_sampling_from_the_normal_prior_needs_only_the_weights(folder: Path) -> None:
    call("sample", "--prior", "normal", "-o", "with.png")
    for name in ("priors", "directions"):
        (folder / "models" / f"{name}.safetensors").unlink()
    call("sample", "--prior", "normal", "-o", "without.png")
    assert Path("with.png").read_bytes() == Path("without.png").read_bytes()


@pytest.mark.usefixtures("folder")
def test_pictures_show_what_the_python_api_returns() -> None:
    model = facevae.load("models/vae.safetensors")
    original = model.prepare(["a.png", "b.jpg"])
    edited = model.edit("a.png", add={"Smiling": 2.0}, remove={"Eyeglasses": 2.0})
    white = np.full((6, 8, 8, 3), 255, np.uint8)
    for arguments, tiles, rows, columns in (
        ("sample -n 10 --seed 3", np.concatenate([model.sample(10, seed=3), white]).reshape(2, 8, 8, 8, 3), [], []),
        (
            "reconstruct a.png b.jpg",
            np.stack([original, model.reconstruct(original)]),
            ["original", "reconstruction"],
            [],
        ),
        (
            "interpolate a.png b.jpg -n 3",
            np.stack([original[0], *model.interpolate("a.png", "b.jpg", 3), original[1]])[None],
            [],
            ["original", "", "", "", "original"],
        ),
        (
            "edit a.png --add Smiling --remove Eyeglasses --strength 2",
            np.stack([original[0], model.reconstruct("a.png")[0], edited[0]])[None],
            [],
            ["original", "reconstruction", "edited"],
        ),
    ):
        call(*arguments.split(), "-o", "command.png")
        enlarged = tiles.repeat(20, axis=2).repeat(20, axis=3)
        save_tiles(Path("expected.png"), enlarged, row_labels=rows, column_labels=columns)
        assert Path("command.png").read_bytes() == Path("expected.png").read_bytes(), arguments


def test_version_is_that_of_the_package() -> None:
    assert call("--version") == f"{facevae.__version__}\n"


def test_the_editor_is_named_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=r"models/editor.html is not in .*: run `dvc repro`"):
        call("editor")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "editor.html").touch()
    assert call("editor") == f"{(tmp_path / 'models' / 'editor.html').as_uri()}\n"
