"""Speed of `prepare` on JPEGs of CelebA's size (178 x 218 to 128 x 128), from 8,000 images to CelebA's 202,599.

The given faces are enlarged once and linked under many names. The comparison is Pillow alone, which decodes and resizes
on all cores and keeps nothing. As a script, this module prepares one source in a process of its own, so that its memory
can be measured.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from measuring import Row, interleaved
from PIL import Image

from facevae.config.schema import DataParams
from facevae.data.preparation import prepare
from facevae.data.sources.dispatch import open_source

COUNTS = (8000, 32000, 202_599)
SIZE, SQUARE = (178, 218), (0, 20, 178, 198)
PILLOW = "Pillow alone"
NUM_FILES = 2000  # different images
QUALITY = 85  # of the JPEGs: 7 kB on average, like CelebA's
NUM_REPEATS = 3
SECONDS_BETWEEN_LOOKS = 1.0  # at the memory; a look takes some milliseconds


def measure(images: Path, root: Path) -> list[Row]:
    rows = []
    with TemporaryDirectory(dir=root / ".facevae") as name:
        folder = Path(name)
        attributes = (images / "list_attr_celeba.txt").read_text(encoding="utf-8").splitlines()
        originals = _enlarged(images / "img_align_celeba", folder / "large")
        rates: dict[str, float] = {}
        peaks: dict[str, float] = {}
        for count in COUNTS:
            source = _repeated(originals, attributes, folder / str(count), count)
            title = f"{count:,} images"

            def run(source: Path = source, count: int = count, title: str = title) -> float:
                seconds, peak = _run(source, folder / "prepared")
                peaks[title] = max(peak, peaks.get(title, 0))
                return count / seconds

            contenders: dict[str, Callable[[], float]] = {
                PILLOW: partial(_pillow_alone, originals),
                f"prepare {title}": run,
            }
            found = interleaved(contenders, NUM_REPEATS if count < COUNTS[-1] else 1)
            rates[title] = found[f"prepare {title}"]
            rows.append(Row(f"prepare {title}", rates[title], "images/s", PILLOW, rates[title] / found[PILLOW]))
            rows.append(Row(f"prepare {title}: memory of all processes", peaks[title], "GiB"))
        first, last = (f"{count:,} images" for count in (COUNTS[0], COUNTS[-1]))
        rows.append(Row(f"prepare {last}", rates[last], "images/s", f"prepare {first}", rates[last] / rates[first]))
    return rows


def _pillow_alone(files: list[Path]) -> float:
    """Images per second that Pillow decodes and resizes, with one process per core."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        return cores * statistics.fmean(pool.map(_decode, [files] * (2 * cores)))


def _decode(files: list[Path]) -> float:
    start = time.perf_counter()
    for path in files:
        with Image.open(path) as image:
            image.resize((128, 128), Image.Resampling.HAMMING, SQUARE)
    return len(files) / (time.perf_counter() - start)


def _prepare(source: Path, target: Path) -> None:
    data = DataParams(
        source="celeba",
        root=str(source),
        num_images=None,
        image_size=128,
        channels=3,
        crop=None,
        split="random",
        validation_fraction=0.1,
        test_fraction=0.1,
        keep_duplicates_together=False,
        on_bad_image="fail",
    )
    prepare(open_source(data, 0), data, 0, target)


def _enlarged(source: Path, target: Path) -> list[Path]:
    target.mkdir()
    paths = []
    for path in sorted(source.iterdir())[:NUM_FILES]:
        with Image.open(path) as image:
            image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(target / path.name, quality=QUALITY)
        paths.append(target / path.name)
    return paths


def _repeated(originals: list[Path], attributes: list[str], folder: Path, count: int) -> Path:
    """A folder in CelebA's layout with `count` images."""
    (folder / "img_align_celeba").mkdir(parents=True)
    values = [line.split(maxsplit=1)[1] for line in attributes[2:]]
    lines = [str(count), attributes[1]]
    for index, original in enumerate(np.resize(np.array(originals, dtype=object), count)):
        name = f"{index + 1:06d}.jpg"
        (folder / "img_align_celeba" / name).hardlink_to(original)
        lines.append(f"{name} {values[index % len(values)]}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _run(source: Path, target: Path) -> tuple[float, float]:
    """Duration of a prepare in seconds, and peak memory of all its processes in GiB."""
    command = [sys.executable, __file__, str(source), str(target)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, _held_bytes(psutil.Process(process.pid)) / 2**30)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        assert process.stdout is not None
        return float(process.stdout.read()), peak


def _held_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children in bytes, with shared pages counted once."""
    try:
        processes = [process, *process.children()]
        return sum(each.memory_full_info().pss for each in processes)
    except psutil.Error:
        return 0  # a process has just ended


def main() -> None:
    start = time.perf_counter()
    _prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
