"""The speed benchmark. Each part compares within one run.

Each part writes its rows and the hardware to benchmarks/results/, one file for each kind of processor.
"""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

from measuring import RESULTS, ROOT, as_table, hardware

from facevae.errors import reported_errors

PARTS = ("throughput", "time_to_quality", "prepare", "start", "scaling", "editor", "portable")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="a folder with img_align_celeba/ and list_attr_celeba.txt")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; all by default")
    arguments = parser.parse_args()
    (ROOT / ".facevae").mkdir(exist_ok=True)
    with reported_errors():
        for part in arguments.only:
            print(f"{part}:", flush=True)
            rows = importlib.import_module(f"bench_{part}").measure(arguments.images.resolve(), ROOT)
            facts = hardware()
            result = {"hardware": facts, "rows": [asdict(row) for row in rows]}
            target = RESULTS / f"{part}-{str(facts['vectors']).lower()}.json"
            RESULTS.mkdir(exist_ok=True)
            target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            print(as_table(rows), flush=True)


if __name__ == "__main__":
    main()
