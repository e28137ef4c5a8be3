"""What the parts of the speed benchmark share: table rows, medians of interleaved repeats, the hardware."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NATIVE = {"numerics": "native", "precision": "auto", "device": "auto"}  # as fast as the hardware can train

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """A measurement, and its ratio to what it is compared with, measured in the same run."""

    measured: str
    value: float
    unit: str
    compared_with: str = ""
    ratio: float | None = None


def compared(values: Mapping[str, float], own: str, unit: str, *, faster_is: str) -> list[Row]:
    """One row for each value, with the ratio of `own` to each other one. A ratio above 1 favours `own`.

    Parameters
    ----------
    faster_is
        "more" for rates, "less" for times.
    """
    rows = [Row(own, values[own], unit)]
    for name, value in values.items():
        if name != own:
            ratio = values[own] / value if faster_is == "more" else value / values[own]
            rows.append(Row(name, value, unit, f"{own}, times as good", ratio))
    return rows


def interleaved(contenders: Mapping[str, Callable[[], float]], num_repeats: int) -> dict[str, float]:
    """Run the contenders in turn, `num_repeats` times, and return their medians. Other load then hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_repeats):
        for name, measure in contenders.items():
            found[name].append(measure())
            print(f"  {name}: {found[name][-1]:.4g}", flush=True)
    return {name: statistics.median(values) for name, values in found.items()}


def alone(action: Callable[[], Result]) -> Result:
    """Run a picklable action in a new process, so that no earlier setting affects it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(action).result()


def seconds_of(action: Callable[[], object]) -> float:
    """Duration of an action in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def hardware() -> dict[str, object]:
    """The hardware and versions that the figures depend on, without the name of the machine."""
    capability = torch.backends.cpu.get_cpu_capability()
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "vectors": capability,
        "native_bfloat16": "avx512_bf16" in text or "amx_bf16" in text,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def as_table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| | | | ratio |", "|---|---:|---|---:|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.compared_with})"
        lines.append(f"| {row.measured} | {row.value:,.4g} | {row.unit} | {ratio} |")
    return "\n".join(lines)
