"""What the same bits on every processor cost: CPU time of the demo's stages, portable and native.

Needs the demo's prepared set and models. CPU time, unlike time, hardly depends on what else the machine does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import Row, interleaved

from facevae.config.params import load_params
from facevae.config.paths import CLASSIFIER, MODEL
from facevae.config.schema import Params
from facevae.data.prepared import PreparedSet
from facevae.device import set_up_device
from facevae.evaluate.evaluation import evaluate
from facevae.evaluate.judge import load_classifier
from facevae.evaluate.judge_training import train_classifier
from facevae.figures.gallery import load_results, render_all
from facevae.model import checkpoint, vae
from facevae.numerics import ENVIRONMENT
from facevae.train import loop

NUM_REPEATS = 3
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
STAGES = ("train", "classifier", "evaluate", "figures")
CONTENDERS = ("portable", "native, AVX2", "native")


def measure(_: Path, root: Path) -> list[Row]:
    rows = []
    for stage in STAGES:
        contenders = {name: partial(_cpu_seconds, root, stage, name) for name in CONTENDERS}
        seconds = interleaved(contenders, NUM_REPEATS)
        rows += [
            Row(f"{stage}: {name}", value, "s of CPU", f"{stage}: portable", value / seconds["portable"])
            for name, value in seconds.items()
        ]
    return rows


def _cpu_seconds(root: Path, stage: str, contender: str) -> float:
    variables = {"portable": ENVIRONMENT, "native, AVX2": AVX2, "native": {}}[contender]
    environment = {**os.environ, "PYTHONPATH": "src", **variables}
    command = [sys.executable, __file__, stage, contender]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measure_here(stage: str, contender: str) -> None:
    """Print the CPU time of one epoch of training, or of a whole later stage."""
    params = load_params()
    numerics = "portable" if contender == "portable" else "native"
    precision = "auto" if contender == "native" else "float32"
    changes = {"epochs": 1, "numerics": numerics, "precision": precision, "device": "cpu", "num_threads": 1}
    params = params.model_copy(
        update={
            "train": params.train.model_copy(update=changes),
            "classifier": params.classifier.model_copy(update={"epochs": 1}),
        }
    )
    device = set_up_device(params.train)
    torch.ones(2).exp()  # loads what the first operation loads
    with tempfile.TemporaryDirectory() as folder:
        work = _work_of(stage, params, device, Path(folder))
        start = time.process_time()
        work()
    print(json.dumps(time.process_time() - start))


def _work_of(stage: str, params: Params, device: torch.device, folder: Path) -> Callable[[], object]:
    """The work of a stage, ready to start."""
    prepared, seed, flip = PreparedSet(), params.seed, params.train.horizontal_flip
    images = prepared.images("train")
    if stage == "train":
        model = vae.new_model(params.model, prepared.manifest.image_size, prepared.manifest.channels, seed=seed)
        validation = prepared.images("validation")
        return lambda: loop.train(model, loop.Setup(images, validation, params.train, device, seed=seed))
    if stage == "classifier":
        given = params.classifier, params.train.precision, device
        return lambda: train_classifier(images, prepared.attributes("train"), *given, horizontal_flip=flip, seed=seed)
    if stage == "evaluate":
        model, header = checkpoint.load(MODEL)
        classifier = load_classifier(CLASSIFIER, data_digest=prepared.digest)
        measured = model, header, classifier, prepared, params.evaluate
        return lambda: evaluate(*measured, horizontal_flip=flip, seed=seed)
    results = load_results()
    return lambda: render_all(folder, results, params.figures, horizontal_flip=flip, seed=seed)


if __name__ == "__main__":
    _measure_here(*sys.argv[1:])
