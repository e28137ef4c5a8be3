"""Repair of the files that a killed DVC leaves behind."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, dvc, init_repository
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from facevae.tracking.mending import DAMAGED, LOCK, RUNNING, mend

COMMITTED = (ROOT / LOCK).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a committed dvc.lock and a later one."""
    (tmp_path / LOCK).write_bytes(COMMITTED)
    init_repository(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content", [COMMITTED[: COMMITTED.index(b"- path") + 8], b"", b"\xff", b"schema: '2.0'\nst"])
def test_a_damaged_lock_is_replaced_by_the_last_commits(folder: Path, content: bytes) -> None:
    (folder / LOCK).write_bytes(content)
    [said] = mend(folder)
    assert "replaced by the last commit's" in said
    assert (folder / LOCK).read_bytes() == COMMITTED
    assert (folder / DAMAGED).read_bytes() == content


def test_without_git_a_damaged_lock_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / LOCK).write_bytes(b"schema")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="git"):
        list(mend(folder))
    assert (folder / LOCK).read_bytes() == b"schema"


def test_a_damaged_lock_that_no_commit_has_is_removed(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"schema")
    [said] = mend(tmp_path)
    assert "removed, because no commit has one" in said
    assert not (tmp_path / LOCK).exists()
    assert (tmp_path / DAMAGED).read_bytes() == b"schema"


@pytest.mark.parametrize("content", [COMMITTED.replace(b"size: ", b"size: 1"), b"<<<<<<< HEAD\n" + COMMITTED])
def test_a_whole_or_conflicted_lock_stays(folder: Path, content: bytes) -> None:
    (folder / LOCK).write_bytes(content)
    assert not list(mend(folder))
    assert (folder / LOCK).read_bytes() == content


def test_only_an_empty_rwlock_is_removed(folder: Path) -> None:
    (folder / RUNNING).parent.mkdir(parents=True)
    (folder / RUNNING).write_text("{}")
    assert not list(mend(folder))
    (folder / RUNNING).write_text("")
    [said] = mend(folder)
    assert "was empty" in said
    assert not (folder / RUNNING).exists()


@pytest.mark.slow
def test_dvc_starts_again_wherever_its_lock_was_cut(copy: Path) -> None:
    """Ask DVC itself for one cut, which leaves a path without a value, and its schema for the others."""
    whole = (copy / LOCK).read_bytes()
    (copy / LOCK).write_bytes(whole[: whole.rindex(b"- path") + 7])
    with pytest.raises(RuntimeError, match=r"dvc.lock' validation failed"):
        dvc(copy, "status")
    assert len(list(mend(copy))) == 1
    assert "up to date" in dvc(copy, "status")
    for length in range(0, len(whole), 101):
        (copy / LOCK).write_bytes(whole[:length])
        expected = whole if list(mend(copy)) else whole[:length]
        assert (copy / LOCK).read_bytes() == expected
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load((copy / LOCK).read_bytes()))  # as DVC does
        assert not list(mend(copy))
