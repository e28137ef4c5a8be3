"""Test the simulated power cut: it may empty only files that no program has synced to disk."""

import os
import time
from pathlib import Path

from power_cut import PowerCut


def test_a_power_cut_empties_only_unsynced_files(tmp_path: Path) -> None:
    root, trace = tmp_path / "root", tmp_path / "trace.log"
    for folder in (root / "data.partial", root / ".git", root / ".dvc/tmp"):
        folder.mkdir(parents=True)
    (root / "old").write_text("was there before")
    cut = PowerCut(root, trace)
    (root / "old").write_text("and was written anew")
    for name in (
        "synced",
        "written-after",
        "never-synced",
        "long-ago",
        ".git/index",
        ".dvc/tmp/lock",
        "data.partial/a",
    ):
        (root / name).write_text("content")
    now = time.time()
    lines = [
        f"12 {now + 1:.6f} fsync(3<{root}/synced>) = 0",
        f"12 {now - 9:.6f} fsync(3<{root}/written-after>) = 0",
        f"12 {now:.6f} fdatasync(4<{root}/data.partial/a> <unfinished ...>",
        f"13 {now:.6f} fsync(3<{root}/never-synced> <unfinished ...>",
        f"12 {now + 1:.6f} <... fdatasync resumed>) = 0",
        f'12 {now + 2:.6f} rename("data.partial", "data") = 0',
    ]
    trace.write_text("\n".join(lines))
    (root / "data.partial").rename(root / "data")
    (root / "second-name").hardlink_to(root / "data/a")
    os.utime(root / "long-ago", (now - 100, now - 100))
    lost = {path.name for path in cut.lose()}
    assert lost == {"written-after", "never-synced"}
    empty = {path.name for path in root.rglob("*") if path.is_file() and path.stat().st_size == 0}
    assert empty == lost
