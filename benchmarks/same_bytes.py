"""Run the whole pipeline again and again in different environments, and check that the bytes stay the same.

The pipeline runs in a clone of the last commit. What varies should not matter: folder, home, time zone, language,
umask, string hashes, free processors, and the threads that environment variables ask for.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from trial import SMALL, Trial

TWO_THREADS = {**SMALL, "train": {**SMALL["train"], "num_threads": 2}}  # also when one processor is free


@dataclass(frozen=True)
class Surroundings:
    """The environment of a run: variables, a command that runs it, other load, and the clone's folder."""

    variables: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    is_busy: bool = False
    folder: str = "clone"


VARIED = {
    "as it is": Surroundings(),
    "a folder whose name has spaces": Surroundings(folder="another folder"),
    "one processor": Surroundings(prefix=("taskset", "--cpu-list", "0")),
    "a busy machine": Surroundings(is_busy=True),
    "another time zone and language": Surroundings({"TZ": "Pacific/Chatham", "LANG": "tr_TR.UTF-8", "LC_ALL": "C"}),
    "fixed string hashes": Surroundings({"PYTHONHASHSEED": "1"}),
    "another user with an empty home": Surroundings({"HOME": "{empty}", "USER": "nobody", "XDG_CACHE_HOME": "{empty}"}),
    "files that only the user may read": Surroundings(prefix=("sh", "-c", 'umask 077; exec "$@"', "sh")),
    "variables that ask for threads": Surroundings({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "3"}),
    "low priority": Surroundings(prefix=("nice", "-n", "19")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to put the clone")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--as-committed", action="store_true", help="with the committed params instead of small ones")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(arguments.folder / "clone", {} if arguments.as_committed else TWO_THREADS)
    expected: dict[str, str] = {}
    for number in range(arguments.runs):
        name, surroundings = list(VARIED.items())[number % len(VARIED)]
        start = time.monotonic()
        trial.move(arguments.folder / surroundings.folder)
        with tempfile.TemporaryDirectory() as empty, burning() if surroundings.is_busy else nullcontext():
            variables = {key: value.format(empty=empty) for key, value in surroundings.variables.items()}
            trial.finish(*surroundings.prefix, environment=variables)
        expected = expected or trial.results()
        trial.check(expected)
        print(f"{number + 1}: {name}: {len(expected)} files, {time.monotonic() - start:.0f} s", flush=True)
        trial.start_over()
    print(f"{arguments.runs} runs, one set of bytes")


@contextmanager
def burning() -> Iterator[None]:
    """Keep every processor busy."""
    processes = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _burn() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
