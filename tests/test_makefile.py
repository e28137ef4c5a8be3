"""The Makefile, also under make 3.81, and what of it CI runs."""

import re
import shutil
import subprocess

from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
EVERYWHERE = {"awk", "find", "rm", "touch"}


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


def test_the_workflow_runs_all_steps_of_the_ci_script() -> None:
    steps = re.findall(r"^(\w+)\(\) \{$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    called = re.findall(r"bash \.ci/run (\w+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert called == [step for step in steps if step != "browser"]
