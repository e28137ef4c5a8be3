"""Which params the stages read, and what they do if params change while they run."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, failure_of, run_stage
from pydantic import BaseModel

from facevae.config import params
from facevae.config.checks import ATTRIBUTE_LISTS
from facevae.config.schema import Params
from facevae.data import preparation
from facevae.editor import page
from facevae.evaluate import evaluation, judge_training
from facevae.figures import gallery

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CHECKED = {
    "prepare": {*ATTRIBUTE_LISTS, "evaluate.split", "figures.split", "train.numerics"}
}  # only checked early; they change no result
WORK = {  # the function that a stage calls between the two digests of its inputs
    "prepare": (preparation, "prepare"),
    "classifier": (judge_training, "train_classifier"),
    "evaluate": (evaluation, "evaluate"),
    "figures": (gallery, "render_all"),
    "editor": (page, "build_page"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_collects_garbage_once_it_has_imported_its_modules(stage: str) -> None:
    code = f"""
import gc, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name not in ("facevae", "facevae.stage_script", "facevae.errors"):
            assert not name.startswith(("facevae", "torch", "numpy")) or not gc.isenabled(), name

watch = Watch()
sys.meta_path.insert(0, watch)
script = runpy.run_path("stages/{stage}.py")
sys.meta_path.remove(watch)
script["stage_script"].run(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000), "")
"""
    environment = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
    main = (ROOT / "stages" / f"{stage}.py").read_text().partition('if __name__ == "__main__":\n')[2]
    assert main.startswith("    stage_script.run(main, ")


@pytest.mark.parametrize("stage", ["classifier", "train"])
def test_a_batch_of_more_images_than_there_are_is_a_warning(
    work_tree: Path, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "batch_size" not in caplog.text
    path = work_tree / "params.yaml"
    path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 13"))  # of 12 training images
    run_stage(stage)
    assert f"{stage}.batch_size: 13, but there are only 12 training images" in caplog.text


@pytest.mark.usefixtures("work_tree")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_params_it_reads(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC does not run a stage again for a param that dvc.yaml does not list, so its results would be stale."""
    sections: dict[int, tuple[str, BaseModel]] = {}  # the loaded sections and their names, by id
    used: set[str] = set()
    load, get = params.load_params, BaseModel.__getattribute__

    def load_and_watch() -> Params:
        loaded = load()
        for name in Params.model_fields:
            sections[id(loaded.__dict__[name])] = name, loaded.__dict__[name]
        return loaded

    def watch(section: BaseModel, name: str) -> object:
        if id(section) in sections and name in type(section).model_fields:
            used.add(f"{sections[id(section)][0]}.{name}")
        return get(section, name)

    monkeypatch.setattr(params, "load_params", load_and_watch)
    for field in Params.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            monkeypatch.setattr(field.annotation, "__getattribute__", watch)
    run_stage(stage)
    used -= CHECKED.get(stage, set())
    declared = set(STAGES[stage]["params"]) - {"seed"}
    assert {key for key in used if not {key, key.partition(".")[0]} & declared} == set()
    assert declared <= used | {key.partition(".")[0] for key in used}


WATCHED: list[str] = []  # what the process opens or lists, while a test watches
IS_WATCHED = [False]


def watch_files(event: str, arguments: tuple[Any, ...]) -> None:
    if IS_WATCHED[0] and event in {"open", "os.listdir", "os.scandir"} and isinstance(arguments[0], str):
        WATCHED.append(arguments[0])


sys.addaudithook(watch_files)  # it cannot be removed


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_no_file_that_dvc_does_not_know(work_tree: Path, stage: str) -> None:
    """Of the project's and all other files, except for what checks, reports or tracks, and for installed packages."""
    entry = STAGES[stage]
    outputs = [name for kind in ("outs", "metrics", "plots") for name in entry.get(kind, [])]
    known = [name for item in (*entry["deps"], *outputs) for name in (item if isinstance(item, dict) else [item])]
    declared = [Path(name.replace("${data.root}", "data/raw")).resolve() for name in known]
    library = ROOT / "src" / "facevae"
    names = ("__init__.py", "config", "errors.py", "fingerprint.py", "stage_script.py", "tracking")
    unseen = [library / name for name in names]
    unseen += [
        work_tree / "params.yaml",
        work_tree / "dvc.yaml",
        work_tree / ".facevae",
        work_tree / "data/prepared.old",
    ]
    unseen += [Path(sys.prefix), Path(sys.base_prefix), *map(Path, ("/dev", "/etc", "/proc", "/sys", "/usr"))]
    IS_WATCHED[0] = True
    try:
        run_stage(stage)
    finally:
        IS_WATCHED[0] = False
    opened = {Path(name).resolve() for name in WATCHED if "__pycache__" not in name and ".partial" not in name}
    WATCHED.clear()
    assert is_within(Path(entry["cmd"].split()[-1]).resolve(), opened)
    folders = {folder for path in declared for folder in path.parents}  # of the outputs, listed or synced
    assert {path for path in opened - folders if not is_within(path, [*declared, *unseen])} == set()


@pytest.mark.parametrize("stage", WORK)
def test_a_stage_fails_if_params_change_while_it_runs(
    work_tree: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, name = WORK[stage]
    work, path = getattr(module, name), work_tree / "params.yaml"

    def edit_params_and_work(*arguments: Any, **options: Any) -> Any:
        path.write_text(path.read_text().replace("seed: 7", "seed: 8"))
        return work(*arguments, **options)

    monkeypatch.setattr(module, name, edit_params_and_work)
    assert failure_of(stage, capsys).startswith("error: params.yaml, the data or the code changed while the stage ran")
