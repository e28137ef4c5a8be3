"""States of the pipeline, with digests compared to those of the real DVC."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, change_params, commit_all

from facevae.errors import UserError
from facevae.tracking.project_files import digest_of, open_files
from facevae.tracking.repository import Repository
from facevae.tracking.state import State


def differences(state: State) -> dict[str, list[str]]:
    return {name: parts for name in state.stages if (parts := state.differences(name))}


def test_outside_git_there_are_no_commits_in_any_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(
        "#!/bin/sh\n"
        "said='Kein Git-Repository'\n"
        '[ "$LC_ALL" = C ] && said="not a git repository"\n'
        'echo "fatal: $said" >&2\n'
        "exit 128\n"
    )
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(git.parent), prepend=":")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert Repository(tmp_path).commits() == []


def test_digests_equal_those_of_dvc(project: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    items = [item for stage in lock.values() for kind in ("deps", "outs") for item in stage[kind]]
    assert {item["path"] for item in items} > {"data/prepared", "src/facevae/data", "models/vae.safetensors"}
    for item in items:
        assert digest_of(project / item["path"]) == item["md5"], item["path"]


def test_a_commit_has_the_fingerprint_of_its_work_tree(project: Path) -> None:
    committed = open_files(project, "HEAD")
    for path in ("params.yaml", "plots/samples.png", "no/such/file", "src/facevae/data"):
        assert digest_of(committed / path) == digest_of(project / path)
    assert digest_of(committed / "models") != digest_of(project / "models")  # the weights are not in Git
    assert State(committed).fingerprint == State(project).fingerprint


def test_a_state_is_complete_when_dvc_has_nothing_to_do(project: Path) -> None:
    for revision in (None, "HEAD"):
        assert differences(State(open_files(project, revision))) == {}


def test_a_pipeline_that_never_ran_is_not_complete(project: Path) -> None:
    with pytest.raises(UserError, match="dvc.lock has no digest of data/prepared: run `dvc repro`"):
        State(open_files(project, "HEAD~1"))
    state = State(open_files(project, "HEAD~1"), "digest")
    assert differences(state) == {
        name: ["never run"] for name in ("prepare", "classifier", "train", "evaluate", "figures", "editor")
    }


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("data", "image_size", 32, {"prepare": ["data"]}),
        ("train", "beta", 2.0, {"train": ["train"]}),
        (
            "train",
            "num_threads",
            2,
            {
                "classifier": ["train.num_threads"],
                "train": ["train"],
                "evaluate": ["train.num_threads"],
                "figures": ["train.num_threads"],
                "editor": ["train.num_threads"],
            },
        ),
        ("figures", "num_samples", 5, {"figures": ["figures"]}),
        ("train", "beta", 1, {}),  # 1 and 1.0 are equal, for DVC too
        ("tracking", "experiment", "other", {}),
    ],
)
def test_changed_params_put_stages_out_of_date(
    copy: Path, section: str, key: str, value: object, expected: dict[str, list[str]]
) -> None:
    change_params(copy, section, key, value)
    assert differences(State(copy)) == expected


def test_changed_code_and_outputs_put_stages_out_of_date(copy: Path) -> None:
    (copy / "src/facevae/evaluate/reconstruction.py").write_text("# other\n")
    (copy / "plots/samples.png").unlink()
    assert differences(State(copy)) == {
        "evaluate": ["src/facevae/evaluate"],
        "figures": ["plots/samples.png"],
    }
    (copy / "models/vae.safetensors").write_bytes(b"other")
    assert differences(State(copy))["train"] == ["models/vae.safetensors"]


def test_missing_weights_and_data_count_as_recorded(copy: Path) -> None:
    shutil.rmtree(copy / "data/prepared")
    (copy / "models/vae.safetensors").unlink()
    state = State(copy)
    assert differences(state) == {}
    assert state.fingerprint == State(open_files(copy, "HEAD")).fingerprint


@pytest.mark.parametrize(
    ("section", "key", "value", "same"),
    [
        ("train", "beta", 2.0, False),
        ("model", "latent_dim", 4, False),
        ("evaluate", "split", "validation", False),
        ("figures", "num_samples", 5, False),
        ("train", "beta", 1, True),
        ("data", "root", "elsewhere", True),  # the digest of the data covers it
        ("tracking", "experiment", "other", True),
    ],
)
def test_the_fingerprint_covers_params_that_determine_results(
    copy: Path, section: str, key: str, value: object, same: bool
) -> None:
    before = State(copy).fingerprint
    change_params(copy, section, key, value)
    assert (State(copy).fingerprint == before) is same


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("src/facevae/model/vae.py", False),
        ("src/facevae/figures/png.py", False),
        ("stages/evaluate.py", False),
        ("src/facevae/data/sources/mnist.py", True),  # the digest of the data covers it
        ("src/facevae/tracking/store.py", True),
        ("src/facevae/cli.py", True),
    ],
)
def test_the_fingerprint_covers_code_that_determines_results(copy: Path, path: str, same: bool) -> None:
    before = State(copy).fingerprint
    (copy / path).write_text("# other\n")
    assert (State(copy).fingerprint == before) is same


def test_other_data_is_another_state(project: Path) -> None:
    assert State(project, "other").fingerprint != State(project).fingerprint


def test_a_project_may_be_a_folder_of_a_repository(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "sub", ignore=shutil.ignore_patterns(".git", "__pycache__"))
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "config", key, value], cwd=tmp_path, check=True)
    commit_all(tmp_path, "All")
    assert State(open_files(tmp_path / "sub", "HEAD")).fingerprint == State(project).fingerprint


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("params.yaml", None, "params.yaml is missing"),
        ("dvc.yaml", "- a list", "dvc.yaml is not a mapping"),
        ("dvc.lock", "{", "dvc.lock is not valid YAML"),
    ],
)
def test_a_damaged_project_is_an_error(tmp_path: Path, path: str, content: str | None, message: str) -> None:
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / path).unlink()
    if content is not None:
        (tmp_path / path).write_text(content)
    with pytest.raises(UserError, match=message):
        State(tmp_path)
