"""The report of CI on a small repository that trains nothing, with the real Git and the real DVC."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, clean_environment
from PIL import Image

SCRIPT = ROOT / ".ci" / "report.py"
PIPELINE = """
stages:
  make:
    cmd: "true"
    params: [rate]
    metrics:
      - metrics/numbers.json: {cache: false}
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    """Commit everything; return the commit's short name."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "state")
    return git(folder, "rev-parse", "HEAD")[:7]


def report(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a failed report."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def write_values(folder: Path, rate: float, **metrics: float | None) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics" / "numbers.json").write_text(json.dumps(metrics))
    (folder / "params.yaml").write_text(f"rate: {rate}\n")


def write_picture(folder: Path, name: str, left: int, right: int, width: int = 8) -> None:
    """A picture 6 pixels high whose halves have one intensity each."""
    (folder / "plots").mkdir(exist_ok=True)
    halves = np.repeat(np.array([left, right], dtype=np.uint8), width // 2)
    Image.fromarray(np.tile(halves, (6, 1))).save(folder / "plots" / name)


def contents(folder: Path) -> dict[str, bytes]:
    """All files by path, except Git's."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work tree that differs from HEAD, which differs from origin/main, with a report on the differences."""
    folder = tmp_path_factory.mktemp("project")
    git(folder, "init", "--quiet")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvc" / ".gitignore").write_text("/tmp\n/cache\n")
    (folder / ".gitignore").write_text("/report/\n")
    (folder / "dvc.yaml").write_text(PIPELINE)
    commit(folder)
    git(folder, "tag", "first")

    write_values(folder, rate=0.5, loss=3.25, accuracy=0.75, gone=4.0)
    for name in ("same.png", "changed.png", "old one.png", "resized.png", "broken.png"):
        write_picture(folder, name, left=10, right=20)
    commit(folder)
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")

    write_values(folder, rate=0.25, loss=3.0, accuracy=0.75, gone=4.0)
    write_picture(folder, "changed.png", left=10, right=90)
    commit(folder)

    write_values(folder, rate=0.25, loss=2.6, accuracy=0.75, fresh=8.5)
    write_picture(folder, "changed.png", left=9, right=27)
    write_picture(folder, "new.png", left=0, right=255)
    write_picture(folder, "resized.png", left=10, right=20, width=12)
    (folder / "plots" / "broken.png").write_bytes(b"no picture")
    (folder / "plots" / "old one.png").unlink()
    result = report(folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "report/report.md\n"
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change something."""
    return shutil.copytree(project, tmp_path / "copy")


@pytest.fixture(scope="module")
def text(project: Path) -> str:
    return (project / "report" / "report.md").read_text()


def test_the_report_names_what_it_compares(project: Path, text: str) -> None:
    base, head = git(project, "rev-parse", "origin/main")[:7], git(project, "rev-parse", "HEAD")[:7]
    assert f"Before: commit `{base}`. After: the work tree on `{head}`, with uncommitted changes.\n" in text


def test_metrics_and_params_show_both_values_and_the_change(text: str) -> None:
    parameters, metrics = text.split("## Metrics")
    assert "| params.yaml | rate | 0.5 | 0.25 | -0.25 | -50 % |" in parameters
    assert re.findall(r"\| metrics/numbers.json \| (.*) \|", metrics) == [
        "accuracy | 0.75 | 0.75 |  | ",
        "fresh | - | 8.5 |  | ",
        "gone | 4.0 | - |  | ",
        "loss | 3.25 | 2.6 | -0.65 | -20 %",
    ]
    assert "Nothing changed." not in text


def test_a_changed_figure_shows_before_after_and_difference(project: Path, text: str) -> None:
    assert "| changed.png | other bytes | 4 |" in text  # one half by 1, the other by 7
    assert "| ![before/changed.png](before/changed.png) | ![after/changed.png](after/changed.png) |" in text
    assert (project / "report/after/changed.png").read_bytes() == (project / "plots/changed.png").read_bytes()
    show = ["git", "show", "origin/main:plots/changed.png"]
    committed = subprocess.run(show, cwd=project, capture_output=True, check=True).stdout
    assert (project / "report/before/changed.png").read_bytes() == committed


def test_an_identical_figure_is_shown_once(text: str) -> None:
    assert "| same.png | same bytes | |" in text
    shown, folded = text.split("<details><summary>The same on both sides: 1</summary>")
    assert re.findall(r"!\[.*?\]\((.*?)\)", folded) == ["after/same.png"]
    assert "](after/same.png)" not in shown


def test_new_and_removed_figures_are_named_and_shown(project: Path, text: str) -> None:
    assert "| new.png | new | |" in text
    assert "| - | ![after/new.png](after/new.png) |" in text
    assert "| old one.png | removed | |" in text
    assert "| ![before/old one.png](before/old%20one.png) | - |" in text
    assert not (project / "report" / "before" / "new.png").exists()
    assert not (project / "report" / "after" / "old one.png").exists()


def test_figures_that_cannot_be_compared_say_why(text: str) -> None:
    assert "| resized.png | other bytes | 8 x 6 pixels became 12 x 6 |" in text
    assert "| broken.png | other bytes | cannot be compared: it is empty or not an image (" in text


def test_a_new_report_replaces_the_old_one(copy: Path) -> None:
    """Only the addresses of its figures differ, as requested by --image-url."""
    former = contents(copy / "report")
    (copy / "report" / "before" / "stale.png").touch()
    result = report(copy, "--base", "HEAD~1", "--image-url", "https://example.com/figures/")
    assert result.returncode == 0, result.stderr
    made = contents(copy / "report")
    text = former.pop("report.md").decode()
    assert "](before/changed.png)" in text
    assert made.pop("report.md").decode() == re.sub(r"\]\((before|after)/", r"](https://example.com/figures/\1/", text)
    assert made == former
    assert [path.name for path in copy.iterdir() if path.name.startswith(".report")] == []


def test_a_report_without_changes_says_so(copy: Path) -> None:
    git(copy, "stash", "--quiet", "--include-untracked")
    result = report(copy, "--base", "HEAD")
    assert result.returncode == 0, result.stderr
    text = (copy / "report" / "report.md").read_text()
    assert ", without uncommitted changes." in text
    assert text.count("Nothing changed.") == 2
    assert "| metrics/numbers.json | loss | 3.0 | 3.0 |  |  |" in text
    assert "| before | after |\n" not in text


def test_a_base_without_results_has_only_new_ones(copy: Path) -> None:
    result = report(copy, "--base", "first")
    assert result.returncode == 0, result.stderr
    text = (copy / "report" / "report.md").read_text()
    assert "| metrics/numbers.json | loss | - | 2.6 |  |  |" in text
    assert text.count(".png | new | |") == 5
    assert list((copy / "report" / "before").iterdir()) == []


@pytest.mark.parametrize("base", ["nowhere", "0" * 40, "", "--all"])
def test_an_unknown_base_is_an_error_and_keeps_the_report(project: Path, base: str) -> None:
    former = contents(project)
    assert f"--base: {base!r} is not a commit here" in error_of(report(project, f"--base={base}"))
    assert contents(project) == former


def test_folders_that_are_not_a_report_are_not_replaced(copy: Path) -> None:
    (copy / "report" / "notes.txt").write_text("mine")
    (copy / "mine" / "before").mkdir(parents=True)
    former = contents(copy)
    assert "--output: plots is not a report: it holds broken.png" in error_of(report(copy, "--output", "plots"))
    assert "--output: report is not a report: it holds notes.txt" in error_of(report(copy))
    assert "--output: mine is not a report: it holds no report.md" in error_of(report(copy, "--output", "mine"))
    assert "--output: params.yaml cannot be written" in error_of(report(copy, "--output", "params.yaml"))
    assert contents(copy) == former


def test_outside_a_clone_the_report_says_where_to_run(project: Path, tmp_path: Path) -> None:
    assert f"{tmp_path}: git says 'fatal: not a git repository" in error_of(report(tmp_path))
    assert f"{project / 'plots' / 'dvc.yaml'} is missing" in error_of(report(project / "plots"))
    assert not (project / "plots" / "report").exists()


def test_without_dvc_the_report_says_what_to_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "executable", "/nowhere/bin/python")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: /nowhere/bin/dvc is missing. Run this with .venv/bin/python")
