"""Kill the pipeline at random moments, and check that it still ends with the bytes of an undisturbed run.

The pipeline runs in a clone of the last commit. DVC's process group gets SIGKILL, SIGTERM or SIGINT, or the power is
cut (simulated). Then `dvc repro` is called again, and perhaps killed again, until it finishes.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from power_cut import PowerCut
from trial import COMMITTED, SMALL, Trial

POWER_CUT = "power cut"
WAYS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, POWER_CUT: signal.SIGKILL}
PATIENCE = 60  # seconds for processes to end after a signal


@dataclass(frozen=True)
class Kill:
    """A run that was killed: how, in which stage, how much unsaved work was lost, and which files."""

    way: str
    stage: str
    lost_seconds: float
    lost_files: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to put the clone")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--as-committed",
        action="store_true",
        help="use the committed params and compare with the committed results, which must come from this machine",
    )
    parser.add_argument("--stage", help="run up to this stage, and kill only while it runs")
    parser.add_argument(
        "--within", type=float, help="at most so many seconds until a kill; default: half an undisturbed run"
    )
    arguments = parser.parse_args()
    if arguments.as_committed and arguments.within is None:
        parser.error("--as-committed needs --within, since it has no undisturbed run to take the time from")
    if POWER_CUT in arguments.ways and not shutil.which("strace"):
        sys.exit(f"{POWER_CUT} needs strace: install it, or name other --ways")
    trial = Trial(arguments.folder, {} if arguments.as_committed else SMALL, arguments.stage)
    start = time.monotonic()
    if not arguments.as_committed:
        trial.finish()
    within = arguments.within or (time.monotonic() - start) / 2
    compared = COMMITTED if arguments.as_committed else ()
    expected = trial.results(*compared)
    chance = random.Random(arguments.seed)
    kills: list[Kill] = []
    num_whole = 0
    trial.start_over()
    while len(kills) < arguments.kills:
        kill = attempt(trial, chance.choice(arguments.ways), chance.uniform(0, within), arguments.stage)
        if kill:
            kills.append(kill)
            print(f"{len(kills)}: {kill}", flush=True)
        else:
            num_whole += 1
            trial.check(expected, *compared)
            trial.start_over()
    trial.finish()
    trial.check(expected, *compared)
    report(kills, num_whole + 1)


def attempt(trial: Trial, way: str, seconds: float, only: str | None) -> Kill | None:
    """Run, and kill after so many seconds, counted from the start of stage `only` if given. None: it ended first."""
    cut = PowerCut(trial.folder, trial.log.with_name("trace.log")) if way == POWER_CUT else None
    process = trial.start(*(cut.tracer if cut else ()))
    stage, since = "", time.monotonic()
    deadline = since + seconds if only is None else float("inf")
    while process.poll() is None:
        time.sleep(0.01)
        if (current := running_stage(trial.log)) != stage:
            stage, since = current, time.monotonic()
            if only is not None:
                deadline = since + seconds if stage == only else float("inf")
        if time.monotonic() > deadline:
            lost_seconds = min(time.monotonic() - since, seconds_since_save(trial.folder, stage))
            os.killpg(process.pid, WAYS[way])
            wait_for_group(process)
            lost = tuple(str(path.relative_to(trial.folder)) for path in cut.lose()) if cut else ()
            return Kill(way, stage or "DVC itself", lost_seconds, lost)
    if process.returncode != 0:
        sys.exit(f"`dvc repro` failed after a kill:\n{trial.log.read_text(errors='replace')}")
    return None


def running_stage(log: Path) -> str:
    """The stage that runs, according to DVC's output; empty before the first one."""
    running = [line for line in log.read_text(errors="replace").splitlines() if "Running stage '" in line]
    return running[-1].split("'")[1] if running else ""


def seconds_since_save(folder: Path, stage: str) -> float:
    """Seconds since a training saved its progress, which only the stage `train` does."""
    saved = [path.stat().st_mtime for path in (folder / ".facevae" / "resume").glob("[!.]*")]
    return time.time() - max(saved) if stage == "train" and saved else float("inf")


def wait_for_group(process: "subprocess.Popen[bytes]") -> None:
    """Wait for all processes, since a stage may outlive DVC, and kill those that do not end."""
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)


def report(kills: list[Kill], num_whole: int) -> None:
    table = pd.DataFrame(kills)
    print(pd.crosstab(table["stage"], table["way"], margins=True).to_string())
    print(table.groupby("stage")["lost_seconds"].agg(["mean", "max"]).round(2).to_string())
    print(f"{table['lost_files'].map(len).sum()} files found empty after power cuts")
    print(f"{len(kills)} kills; {num_whole} runs finished, each with the bytes of the undisturbed one")


if __name__ == "__main__":
    main()
