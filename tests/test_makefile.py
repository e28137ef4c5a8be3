"""The Makefile, also under make 3.81, and what of it CI runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
EVERYWHERE = {"awk", "case", "find", "rm", "touch"}


def test_recipes_name_their_commands_by_path() -> None:
    """Make 3.81 does not search an exported PATH."""
    recipes = [line.strip().lstrip("@") for line in MAKEFILE.splitlines() if line.startswith("\t")]
    assert recipes
    for recipe in recipes:
        command = re.sub(r"^(\w+=\S+ )+", "", recipe).split()[0]
        assert command in EVERYWHERE | {"$(PYTHON)"} or command.startswith("$(BIN)/"), recipe


def test_make_accepts_every_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    make = shutil.which("make")
    assert make
    for target in targets:
        subprocess.run([make, "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", ['a"b', "a`b", "a$b", "$(a)", "a:b", "a#b", "a?b", "{a}", "a\nb", "a\tb"])
def test_a_path_that_python_or_dvc_cannot_handle_is_refused(tmp_path: Path, name: str) -> None:
    assert f"error: the path of this folder, {tmp_path / name}, has one of" in set_up(tmp_path / name)
    assert not (tmp_path / name / ".venv").exists()


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "a'b", "a&b", "a;b", "é", "a[b]*", "a\\b", "(a)", "a|b", "-a", "~", "a=b", "!"]
)
def test_other_paths_are_accepted(tmp_path: Path, name: str) -> None:
    assert "error: the path" not in set_up(tmp_path / name)


def set_up(folder: Path) -> str:
    """What `make repro` says in a folder where Python itself fails."""
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    result = subprocess.run(["make", "repro", "PYTHON=false"], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    return result.stderr


def test_the_workflow_runs_all_steps_of_the_ci_script() -> None:
    steps = re.findall(r"^(\w+)\(\) \{$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    called = re.findall(r"bash \.ci/run (\w+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert called == [step for step in steps if step not in {"as_root", "browser"}]
