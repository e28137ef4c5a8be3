"""Run a small portable pipeline natively and on emulated processors, and check that all give the same bytes.

The pipeline runs in clones of the last commit. DVC runs natively everywhere; its stages run under qemu-user.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from trial import SMALL, Trial

EMULATOR = "qemu-x86_64"
NATIVE = "native"
PORTABLE = {"numerics": "portable", "precision": "float32", "device": "cpu"}
TINY: dict[str, dict[str, Any]] = {  # an emulated processor is thirty times as slow
    **SMALL,
    "data": {"num_images": 100, "image_size": 16},
    "train": {**SMALL["train"], **PORTABLE, "epochs": 2, "learning_rate_warmup_steps": 2},
    "classifier": {"epochs": 1},
    "evaluate": {
        **SMALL["evaluate"],
        "attributes": ["Eyeglasses"],
        "num_importance_samples": 1,
        "num_samples": 8,
        "num_edited_images": 2,
    },
    "figures": {**SMALL["figures"], "attributes": ["Eyeglasses"], "strengths": [-1.0, 0, 1.0], "num_samples": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to put the clones")
    parser.add_argument("--guests", nargs="*", default=["Haswell", "EPYC"], help="of `qemu-x86_64 -cpu help`")
    parser.add_argument("--runs", type=int, default=1, help="of each processor")
    parser.add_argument("--jobs", type=int, default=1, help="pipelines at a time")
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.guests and shutil.which(EMULATOR) is None:
        sys.exit(f"{EMULATOR} is not installed: install Debian's package qemu-user, or pass --guests without names")
    processors = [NATIVE, *arguments.guests] * arguments.runs
    names = [f"{number}-{processor}" for number, processor in enumerate(processors)]
    changes = {**TINY, "train": {**TINY["train"], "num_threads": arguments.num_threads}}
    trials = [Trial(arguments.folder / name, changes) for name in names]
    with tempfile.TemporaryDirectory() as wrappers, ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(partial(_results, Path(wrappers)), trials, processors))
    for trial in trials[1:]:
        trial.check(results[0])
    print(f"{len(trials)} runs on {len(set(processors))} processors: {len(results[0])} files, one set of bytes")


def _results(wrappers: Path, trial: Trial, processor: str) -> dict[str, str]:
    """Run the pipeline and return the digests of its files. DVC finds `python` in the first folder of the PATH."""
    start = time.monotonic()
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if processor != NATIVE:
        path.insert(0, str(_emulated_python(wrappers / trial.folder.name, processor)))
    trial.finish(environment={"PATH": os.pathsep.join(path)})
    found = trial.results()
    print(f"{trial.folder.name}: {len(found)} files, {time.monotonic() - start:.0f} s", flush=True)
    return found


def _emulated_python(folder: Path, processor: str) -> Path:
    """Write the command `python` that runs this Python on an emulated processor; return its folder."""
    folder.mkdir()
    command = shlex.join([EMULATOR, "-cpu", processor, sys.executable])
    (folder / "python").write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    (folder / "python").chmod(0o755)
    return folder


if __name__ == "__main__":
    main()
