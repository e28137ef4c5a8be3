"""Training with one process and two threads, compared with two processes of one thread each, started by torchrun.

One process with one thread is the control, since its sums are also rounded in a different order. torchrun starts this
module as a script.
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
from measuring import NATIVE, ROOT, Row, interleaved

from facevae.config.params import parse_params
from facevae.config.schema import Params
from facevae.data.image_file import fit_image, read_image
from facevae.data.prepared import ArrayWriter
from facevae.device import set_up_device
from facevae.model.vae import new_model
from facevae.train.distributed import joined_workers
from facevae.train.loop import Progress, Setup, train

IMAGE_SIZE = 64
NUM_IMAGES = 2048
NUM_REPEATS = 3
CONTENDERS = {  # number of processes, threads of each
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
    "one process, one thread": (1, 1),
}


def measure(images: Path, root: Path) -> list[Row]:
    with TemporaryDirectory(dir=root / ".facevae") as name:
        files = sorted((images / "img_align_celeba").iterdir())[:NUM_IMAGES]
        pixels = np.stack([fit_image(read_image(path), IMAGE_SIZE, 3, None) for path in files])
        with ArrayWriter(Path(name) / "images.npy", pixels.shape[1:]) as writer:
            writer.append(pixels)
        losses: dict[str, list[float]] = {}

        def run(title: str) -> float:
            num_processes, num_threads = CONTENDERS[title]
            target = Path(name) / "result.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={num_processes}", __file__, name, str(target), str(num_threads)]
            subprocess.run(command, check=True, capture_output=True)
            result = json.loads(target.read_text(encoding="utf-8"))
            losses[title] = result["losses"]
            return float(result["images_per_second"])

        rates = interleaved({title: lambda title=title: run(title) for title in CONTENDERS}, NUM_REPEATS)  # type: ignore[misc]
    first, *others = CONTENDERS
    rows = [Row(first, rates[first], "images/s")]
    rows += [Row(title, rates[title], "images/s", first, rates[title] / rates[first]) for title in others]
    for title in others:
        for epoch, (own, reference) in enumerate(zip(losses[title], losses[first], strict=True), start=1):
            difference = abs(own / reference - 1)
            rows.append(Row(f"{title}: relative difference of the training loss of epoch {epoch}", difference, ""))
    return rows


def main() -> None:
    """Train the demo's model for two epochs, as one of the processes."""
    folder, target, num_threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
    ends: list[float] = []

    def note(_: Progress) -> None:
        ends.append(time.perf_counter())

    params = _params(num_threads)
    device = set_up_device(params.train)
    with joined_workers(device, "benchmark") as workers:
        model = new_model(params.model, IMAGE_SIZE, 3, seed=0)
        setup = Setup(images, images[:200], params.train, device, seed=0, workers=workers)
        result = train(model, setup, on_epoch=[note])
        if workers.leads:
            losses = result.history["train_loss"].tolist()
            found = {"images_per_second": len(images) / (ends[1] - ends[0]), "losses": losses}
            target.write_text(json.dumps(found), encoding="utf-8")


def _params(num_threads: int) -> Params:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["model"]["normalization"] = "group"  # batch normalisation across processes needs GPUs
    tree["train"] |= {"epochs": 2, "kl_warmup_epochs": 2.0, "num_threads": num_threads}
    tree["train"] |= {**NATIVE, "precision": "float32", "device": "cpu"}
    return parse_params(tree, name="params.yaml")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
