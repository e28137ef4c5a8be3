"""The audit of the dependencies, with every kind of answer from the auditor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SAFE = {"name": "numpy", "version": "2.4.6", "vulns": []}
FLAW = {"id": "CVE-1", "fix_versions": ["2.7"], "aliases": [], "description": ""}
VULNERABLE = {"name": "urllib3", "version": "2.6", "vulns": [FLAW]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("dependencies", "status", "status_where_possible", "told"),
    [
        ([SAFE], 0, 0, "1 dependencies, 0 known vulnerabilities"),
        ([SAFE, VULNERABLE], 1, 1, "urllib3 2.6: CVE-1, fixed in 2.7"),
        ([VULNERABLE, SKIPPED], 1, 1, "urllib3 2.6: CVE-1, fixed in 2.7"),
        ([SAFE, SKIPPED], 2, 0, "not audited: 1 dependencies"),
        (None, 2, 0, "not audited: no network"),
    ],
)
def test_dependencies_that_were_not_looked_up_are_not_safe(
    dependencies: list[dict[str, object]] | None, status: int, status_where_possible: int, told: str, tmp_path: Path
) -> None:
    answer = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    asked = tmp_path / "asked"
    script = f"#!/bin/sh\necho \"$@\" > {asked}\ncat <<'END'\n{answer}\nEND\necho no network >&2\nexit 1\n"
    (tmp_path / "uvx").write_text(script)
    (tmp_path / "uvx").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for options, expected in ([], status), (["--where-possible"], status_where_possible):
        result = subprocess.run(
            [sys.executable, ".ci/audit.py", *options],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == expected
        assert told in result.stdout
        for lock in ("requirements.lock", "benchmarks/requirements.lock"):
            assert f"--requirement {lock}" in asked.read_text()
        assert "--require-hashes" in asked.read_text()
