"""Training by one process with two threads, beside two processes with one thread each, which torchrun starts.

As a module it measures; as a script it is what torchrun starts.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from measuring import ROOT, Row, interleaved

from facevae.images import fit_image, read_image
from facevae.model import new_model
from facevae.params import Params, parse_params
from facevae.prepared import ArrayWriter
from facevae.training import Progress, train
from facevae.workers import joined_workers

IMAGE_SIZE = 64
NUM_IMAGES = 2048
NUM_REPEATS = 3


def measure(images: Path, root: Path) -> list[Row]:
    with TemporaryDirectory(dir=root / ".facevae") as name:
        files = sorted((images / "img_align_celeba").iterdir())[:NUM_IMAGES]
        pixels = np.stack([fit_image(read_image(path), IMAGE_SIZE, 3, None) for path in files])
        with ArrayWriter(Path(name) / "images.npy", pixels.shape[1:]) as writer:
            writer.append(pixels)
        losses: dict[int, list[float]] = {}

        def run(num_processes: int) -> float:
            target = Path(name) / "result.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={num_processes}", __file__, name, str(target)]
            subprocess.run(command, check=True, capture_output=True)
            result = json.loads(target.read_text(encoding="utf-8"))
            losses[num_processes] = result["losses"]
            return float(result["images_per_second"])

        titles = {"one process, two threads": 1, "two processes, one thread each": 2}
        rates = interleaved({title: lambda count=count: run(count) for title, count in titles.items()}, NUM_REPEATS)  # type: ignore[misc]
    one, two = rates.values()
    difference = max(abs(a / b - 1) for a, b in zip(losses[1], losses[2], strict=True))
    return [
        Row("one process, two threads", one, "images/s"),
        Row("two processes, one thread each", two, "images/s", "one process", two / one),
        Row("largest relative difference of the losses of two epochs", difference, ""),
    ]


def main() -> None:
    """Train two epochs of the demo's model, as one of the processes."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
    ends: list[float] = []

    def note(_: Progress) -> None:
        ends.append(time.perf_counter())

    params = _params(1)
    with joined_workers(params.train, "benchmark") as workers:
        params = _params(2 // workers.size)
        model = new_model(params.model, IMAGE_SIZE, 3, seed=0)
        result = train(model, images, images[:200], params.train, seed=0, on_epoch=[note], workers=workers)
        if workers.leads:
            losses = result.history[["train_loss", "validation_loss"]].to_numpy().ravel().tolist()
            found = {"images_per_second": len(images) / (ends[1] - ends[0]), "losses": losses}
            target.write_text(json.dumps(found), encoding="utf-8")


def _params(num_threads: int) -> Params:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["train"] |= {"epochs": 2, "num_threads": num_threads, "precision": "float32", "device": "cpu"}
    return parse_params(tree, name="params.yaml")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
