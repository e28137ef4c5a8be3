"""dvc.yaml compared with the code, and a tiny pipeline run by DVC."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, change_params, clone, dvc

LIBRARY = ROOT / "src" / "facevae"
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = list(PIPELINE["stages"])


def module_files(name: str) -> set[Path]:
    """The files that run when a module of the library is imported: its own and its packages'."""
    parts = name.split(".")
    files = set()
    for length in range(1, len(parts) + 1):
        base = ROOT.joinpath("src", *parts[:length])
        files |= {path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()}
    return files


def imported_files(path: Path) -> set[Path]:
    files: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} has a relative import, which this test does not follow"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            files |= module_files(name) if name.split(".")[0] == "facevae" else set()
    return files


def matters(file: Path) -> bool:
    """Whether a result may depend on a file: not on what starts, checks, reports or tracks, nor on the Python API."""
    room, _, name = file.relative_to(LIBRARY).as_posix().rpartition("/")
    unseen = {"__init__.py", "errors.py", "fingerprint.py", "stage_script.py"}
    return room not in {"config", "tracking"} and name not in unseen


def needed_files(path: Path) -> set[Path]:
    """Files of the library that a script imports, directly or not, and that its results may depend on."""
    seen: set[Path] = set()
    waiting = {path}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        waiting |= {file for file in imported_files(current) if matters(file)} - seen
    return seen


def upstream(stage: str) -> set[str]:
    """A stage and all stages whose outputs it depends on."""
    made_by = {name: other for other in STAGES for kind in ("outs", "plots") for name in declared(other, kind)}
    direct = {made_by[name] for name in declared(stage, "deps") if name in made_by}
    return {stage}.union(*(upstream(other) for other in direct))


def declared(stage: str, kind: str) -> set[str]:
    entries = PIPELINE["stages"][stage].get(kind, [])
    return {name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_runs(stage: str) -> None:
    code = {ROOT / name for name in declared(stage, "deps") if name.startswith(("src", "stages"))}
    files = {file for path in code for file in (path.rglob("*.py") if path.is_dir() else [path])}
    files = {file for file in files if file.parent.name == "stages" or matters(file)}
    assert files >= needed_files(ROOT / "stages" / f"{stage}.py")
    assert files <= set().union(*(needed_files(ROOT / "stages" / f"{other}.py") for other in upstream(stage)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_params_that_its_script_uses(stage: str) -> None:
    used = set(re.findall(r"\bparams\.(\w+)", (ROOT / "stages" / f"{stage}.py").read_text()))
    assert {name.split(".")[0] for name in declared(stage, "params")} == used


def test_stages_are_short() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path


ROOMS = {  # each with the rooms and modules that it may import
    "config": {"errors"},
    "storage": {"errors"},
    "data": {"config", "crop", "errors", "storage"},
    "model": {"config", "crop", "errors", "storage"},
    "train": {"config", "data", "device", "errors", "model", "storage"},
    "priors": {"concurrency", "errors", "model", "storage", "train"},
    "evaluate": {"concurrency", "config", "data", "device", "errors", "model", "priors", "storage", "train"},
    "figures": {"config", "data", "errors", "evaluate", "model", "priors", "storage"},
    "editor": {"evaluate", "model", "priors"},
    "tracking": {"config", "errors", "storage"},
    "search": {"config", "errors", "tracking"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_between_rooms_run_one_way(room: str) -> None:
    files = (LIBRARY / room).rglob("*.py")
    imported = {file.relative_to(LIBRARY).with_suffix("").parts[0] for path in files for file in imported_files(path)}
    assert imported - {room, "__init__"} <= ROOMS[room]


def test_rooms_are_packages_without_code() -> None:
    for path in LIBRARY.glob("*/**/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


def test_no_module_imports_itself_in_a_circle() -> None:
    api = LIBRARY / "__init__.py"  # imports the model's class only when `load` is called
    for path in set(LIBRARY.rglob("*.py")) - {api}:
        seen = {api}
        waiting = imported_files(path) - seen
        while waiting:
            current = waiting.pop()
            assert current != path, path
            seen.add(current)
            waiting |= imported_files(current) - seen


def test_two_modules_never_share_a_name() -> None:
    names = [path.stem for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"]
    rooms = [path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(names + rooms) == len({*names, *rooms})


def test_training_knows_neither_result_files_nor_trackers() -> None:
    for name in ("train/loop.py", "train/step.py", "model/vae.py", "model/objective.py"):
        files = {file.relative_to(LIBRARY).as_posix() for file in needed_files(LIBRARY / name)}
        assert not files & {"model/checkpoint.py", "data/prepared.py"}, name


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("facevae.data.preparation, facevae.data.sources", ["torch", "mlflow", "matplotlib", "torchvision"]),
        (
            "facevae.train.loop, facevae.model.checkpoint, facevae.evaluate.evaluation",
            ["mlflow", "matplotlib", "torchvision", "dvc"],
        ),
        ("facevae.figures.gallery", ["mlflow", "torchvision", "matplotlib.pyplot"]),
        ("facevae.cli", ["torch", "mlflow", "matplotlib", "pandas"]),
    ],
)
def test_heavy_packages_are_imported_only_where_used(module: str, forbidden: list[str]) -> None:
    script = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_pipeline_writes_every_declared_output(project: Path) -> None:
    for stage in STAGES:
        for name in declared(stage, "outs") | declared(stage, "metrics"):
            assert (project / name).exists(), name
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert {"squared_error", "importance_weighted_bits_per_dimension", "frechet_distance", "edit_success"} <= set(
        metrics
    )


def test_the_launcher_starts_two_processes_that_train_one_model(copy: Path, tmp_path: Path) -> None:
    alone = pd.read_csv(copy / "plots" / "history.csv")
    logs = tmp_path / "logs"
    launcher = f"torchrun --standalone --nproc-per-node=2 --log-dir={logs} --redirects=3"
    change_params(copy, "train", "launcher", launcher)
    dvc(copy, "repro", "train")
    assert {path.parent.name for path in logs.rglob("stderr.log")} == {"0", "1"}
    together = pd.read_csv(copy / "plots" / "history.csv")
    assert len(together) == len(alone)
    first = slice(1)  # rounding grows from epoch to epoch, how fast depends on the processor
    pd.testing.assert_frame_equal(together[first], alone[first], check_exact=False, rtol=1e-4)


def test_a_second_repro_has_nothing_to_do(project: Path) -> None:
    assert "Data and pipelines are up to date." in dvc(project, "repro")


def test_model_files_are_read_only_links_into_the_cache(project: Path) -> None:
    for path in (project / "models").glob("*.safetensors"):
        assert path.stat().st_nlink > 1, path
        assert path.stat().st_mode & 0o222 == 0, path


def test_compiled_code_is_not_a_dependency(copy: Path) -> None:
    assert list(copy.rglob("__pycache__"))
    for folder in copy.rglob("__pycache__"):
        shutil.rmtree(folder)
    assert "Data and pipelines are up to date." in dvc(copy, "status")


def test_no_output_names_a_path_or_a_time(project: Path) -> None:
    texts = [
        *(project / "metrics").iterdir(),
        *(project / "plots").glob("*.csv"),
        project / "data/prepared/manifest.json",
    ]
    for path in texts:
        assert str(project) not in path.read_text()
        assert not re.search(r"20\d\d-\d\d|seconds|duration|host", path.read_text()), path


def test_dvc_shows_metrics_plots_and_experiments(project: Path) -> None:
    assert "squared_error_plus_kl" in dvc(project, "metrics", "show")
    assert "index.html" in dvc(project, "plots", "show")
    assert "best_epoch" in dvc(project, "exp", "show", "--csv")


def test_only_stages_that_depend_on_a_param_run_again(copy: Path) -> None:
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("num_samples: 6", "num_samples: 5"))
    output = dvc(copy, "repro", "--dry")
    assert re.findall(r"Running stage '(\w+)'", output) == ["figures"]
    (copy / "params.yaml").write_text(params.replace("beta: 1.0", "beta: 2.0"))
    output = dvc(copy, "repro", "--dry")
    assert re.findall(r"Running stage '(\w+)'", output)[0] == "train"


def test_an_error_in_params_names_the_key(copy: Path) -> None:
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("epochs: 2", "epochs: abc"))
    with pytest.raises(RuntimeError, match="train.epochs: 'abc' must be a valid integer") as error:
        dvc(copy, "repro")
    assert "Traceback" not in str(error.value)


def test_a_clone_runs_its_own_code(copy: Path) -> None:
    """DVC's temporary copies must not run the installed library of another checkout."""
    path = copy / "src" / "facevae" / "data" / "preparation.py"
    path.write_text("raise SystemExit('this is the code of the clone')\n")
    with pytest.raises(RuntimeError, match="this is the code of the clone"):
        dvc(copy, "repro")


def test_a_folder_without_images_stops_the_pipeline(tmp_path: Path) -> None:
    folder = clone(tmp_path, data__source="folder", data__num_images=None)
    with pytest.raises(RuntimeError, match="data.root: data/raw holds no image") as error:
        dvc(folder, "repro")
    assert "Traceback" not in str(error.value)
    assert not (folder / "data" / "prepared").exists()


def test_ci_compares_metrics_with_the_committed_ones(copy: Path) -> None:
    check = [sys.executable, str(ROOT / ".ci" / "check_metrics.py")]
    assert subprocess.run(check, cwd=copy, check=False, capture_output=True).returncode == 0
    path = copy / "metrics" / "evaluate.json"
    text = path.read_text()
    changed = json.loads(text)
    changed["squared_error"] *= 1.2
    path.write_text(json.dumps(changed))
    result = subprocess.run(check, cwd=copy, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"\| squared_error .* \*\*off\*\* \|", result.stdout)
    assert result.stdout.count("**off**") == 1
