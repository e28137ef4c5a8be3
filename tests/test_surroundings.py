"""Variables, files and options of a user's shell change no byte of a result."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment, clone

RC = """
axes.facecolor: yellow
axes.formatter.use_locale: True
axes.prop_cycle: cycler("color", ["#000000"])
backend: TkAgg
figure.constrained_layout.use: True
figure.dpi: 37
font.family: cursive
font.size: 31
image.cmap: hot
image.origin: lower
lines.linewidth: 9
path.sketch: 1, 100, 2
savefig.dpi: 13
savefig.facecolor: red
text.usetex: True
timezone: Asia/Kathmandu
no.such.setting: 1
"""
HOSTILE = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "TZ": "Asia/Kathmandu",
    "PYTHONHASHSEED": "123",
    "PYTHONOPTIMIZE": "1",  # asserts check nothing
    "OMP_NUM_THREADS": "3",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as notebooks export it; not installed here
    "COLUMNS": "20",
    "NO_COLOR": "1",
}

DRAW = """
import sys
from pathlib import Path
import numpy as np
import pandas as pd
from facevae.figures import charts, png
folder = Path(sys.argv[1])
terms = [f"{split}_{term}" for split in ("train", "validation") for term in ("loss", "reconstruction", "kl")]
charts.save_losses(folder / "losses.png", pd.DataFrame({"epoch": [1, 2]} | {name: [2.5, 1.5] for name in terms}))
scores = {"strength": [0.5, 1.0], "success": [0.2, 0.9], "success_low": [0.1, 0.8], "success_high": [0.3, 1.0]}
edits = pd.DataFrame({"attribute": "Smiling", "method": "joint", "leakage": 0.1} | scores)
charts.save_strengths(folder / "strengths.png", edits, "joint")
charts.save_leakage(folder / "leakage.png", pd.DataFrame([[0.9, 0.1]], index=["Male"], columns=["Male", "Bald"]))
tiles = np.arange(2 * 3 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 3, 8, 8, 3)
png.save_tiles(folder / "tiles.png", tiles, row_labels=["one", "two"])
png.save_note(folder / "note.png", "nothing to show")
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(target: Path, home: Path, **variables: str) -> dict[str, bytes]:
    """Draw pictures in a process with a home folder, which is also the working directory."""
    environment = clean_environment() | {"HOME": str(home), "XDG_CONFIG_HOME": str(home)} | variables
    script = [sys.executable, "-c", DRAW, str(target)]
    result = subprocess.run(script, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return contents(target)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pictures that are drawn in a home folder without settings."""
    drawn = draw(tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("home"))
    assert len(drawn) == 5
    return drawn


@pytest.mark.parametrize("place", ["matplotlibrc", "matplotlib/matplotlibrc"])
def test_a_users_settings_change_no_picture(tmp_path: Path, pictures: dict[str, bytes], place: str) -> None:
    rc = tmp_path / "home" / place
    rc.parent.mkdir(parents=True)
    rc.write_text(RC)
    assert draw(tmp_path / "pictures", tmp_path / "home") == pictures


@pytest.mark.parametrize("backend", [HOSTILE["MPLBACKEND"], "nonsense"])
def test_the_backend_of_a_notebook_changes_no_picture(tmp_path: Path, pictures: dict[str, bytes], backend: str) -> None:
    assert draw(tmp_path / "pictures", tmp_path, MPLBACKEND=backend) == pictures


def test_a_damaged_matplotlibrc_changes_no_picture(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (tmp_path / "damaged").write_bytes(b"font.size: 31 \xff")  # not UTF-8
    rc = str(tmp_path / "damaged")
    assert draw(tmp_path / "pictures", tmp_path, MATPLOTLIBRC=rc) == pictures


@pytest.mark.slow
def test_surroundings_change_no_result_of_the_pipeline(tmp_path: Path) -> None:
    results = []
    for name, variables, umask in (("plain", {}, 0o022), ("hostile", HOSTILE, 0o077)):
        folder = clone(tmp_path / name)
        (folder / "matplotlibrc").write_text(RC if variables else "")
        (folder / "data/raw").mkdir(exist_ok=True)
        environment = clean_environment() | {"PYTHONPATH": "src"} | variables
        for stage in ("prepare", "classifier", "train", "evaluate", "figures"):
            result = subprocess.run(
                [sys.executable, f"stages/{stage}.py"],
                cwd=folder, env=environment, umask=umask, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert "untracked" not in result.stderr
        results.append({part: contents(folder / part) for part in ("data/prepared", "models", "metrics", "plots")})
    plain, hostile = results
    assert len(plain["plots"]) > 10
    for part in plain:
        assert plain[part].keys() == hostile[part].keys()
        assert [name for name in plain[part] if plain[part][name] != hostile[part][name]] == []


def test_only_one_module_imports_matplotlib() -> None:
    """It overrides the settings first."""
    importing = [path.name for path in (ROOT / "src").rglob("*.py") if "import matplotlib" in path.read_text()]
    importing += [path.name for path in (ROOT / "src").rglob("*.py") if "from matplotlib" in path.read_text()]
    assert set(importing) == {"settings.py"}
