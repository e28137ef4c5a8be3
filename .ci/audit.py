"""Look up known vulnerabilities of the locked dependencies.

The exit status is 1 if a dependency is vulnerable, and 2 if some could not be looked up: no answer does not mean safe.
With --where-possible, failed look-ups are only reported.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

LOCKS = (Path("requirements.lock"), Path("benchmarks/requirements.lock"))
COMMAND = ["uvx", "--from", "pip-audit==2.10.1", "pip-audit", "--format", "json", "--progress-spinner", "off"]
OPTIONS = ["--disable-pip", "--require-hashes"]  # the locks are complete: nothing is resolved or installed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where-possible", action="store_true", help="only report failed look-ups")
    where_possible = parser.parse_args().where_possible
    locks = [argument for path in LOCKS for argument in ("--requirement", str(path))]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"}
    result = subprocess.run([*COMMAND, *OPTIONS, *locks], env=environment, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(result.stdout)["dependencies"]
    except ValueError:
        print(f"not audited: {(result.stderr.strip() or 'no answer').splitlines()[-1]}", file=sys.stderr)
        return 0 if where_possible else 2
    vulnerable = [
        f"{found['name']} {found['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for found in dependencies
        for flaw in found.get("vulns", [])
    ]
    num_skipped = sum("skip_reason" in found for found in dependencies)
    print("\n".join([*vulnerable, f"{len(dependencies)} dependencies, {len(vulnerable)} known vulnerabilities"]))
    if num_skipped:
        print(f"not audited: {num_skipped} dependencies are unknown to the service", file=sys.stderr)
    return 1 if vulnerable else 2 if num_skipped and not where_possible else 0


if __name__ == "__main__":
    sys.exit(main())
