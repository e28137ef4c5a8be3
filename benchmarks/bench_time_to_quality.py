"""Time until our recipe reaches the quality that the original has after ten minutes, on faces at 64 x 64.

Quality is the original's own objective, squared error plus KL, on held-out images. The original is the documented
network in its own loop (float32, JPEGs decoded by a DataLoader, Adam at 0.0005, batches of 32). Ours is the demo's
network at half the width with the same objective. Its schedule must end with the training, so several lengths are
tried, each from the start.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench_throughput import IMAGE_SIZE, Faces, PlainVAE
from measuring import NATIVE, Row
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from facevae.config.params import parse_params
from facevae.config.schema import Params
from facevae.data.image_file import fit_image, read_image
from facevae.device import set_up_device
from facevae.model.pixels import to_unit_range
from facevae.model.vae import new_model
from facevae.train.loop import Setup, train

SECONDS = 600.0
NUM_TRAIN, NUM_VALIDATION = 6500, 500
LENGTHS = (4000, 6000, 8000, 10_000, 13_000, 16_000, 20_000, 26_000, 40_000)  # images seen; stops at the first enough
OUR_MODEL = {"channels": [16, 32, 64, 128], "kernel_size": 4, "latent_dim": 32}
OUR_TRAINING = {
    **NATIVE,
    "optimizer": "adam",
    "muon_learning_rate": None,
    "momentum": None,
    "batch_size": 16,
    "learning_rate": 0.002,
    "likelihood": "squared_error",
    "kl_warmup_epochs": 0.0,
    "clip_gradient_norm": 200.0,
    "average_decay": 0.98,
    "learning_rate_warmup_steps": 10,
}


def measure(images: Path, root: Path) -> list[Row]:
    files = sorted((images / "img_align_celeba").iterdir())[: NUM_TRAIN + NUM_VALIDATION]
    validation = np.stack([fit_image(read_image(path), IMAGE_SIZE, 3, None) for path in files[NUM_TRAIN:]])
    original = _params(root / "presets/celeba.yaml", {}, {})
    target, num_seen = _original_quality(original, files[:NUM_TRAIN], validation)
    print(f"  the original saw {num_seen} images in {SECONDS:.0f} s and reached {target:.1f}", flush=True)
    pixels = np.stack([fit_image(read_image(path), IMAGE_SIZE, 3, None) for path in files[:NUM_TRAIN]])
    params = _params(root / "params.yaml", OUR_MODEL, OUR_TRAINING)
    for length in LENGTHS:
        epochs = max(1, length // NUM_TRAIN)
        own = params.train.model_copy(update={"epochs": epochs})
        seen = pixels[np.resize(np.arange(NUM_TRAIN), length // epochs)]  # an epoch may have some images twice
        device = set_up_device(own)
        start = time.perf_counter()
        result = train(new_model(params.model, IMAGE_SIZE, 3, seed=0), Setup(seen, validation, own, device, seed=0))
        seconds = time.perf_counter() - start
        quality = float(result.history["validation_loss"].min())
        print(f"  ours saw {length} images in {seconds:.1f} s and reached {quality:.1f}", flush=True)
        if quality <= target:
            return [
                Row("original's squared error plus KL after ten minutes", target, ""),
                Row("images that it saw", num_seen, ""),
                Row("ours as good after", seconds, "s", "ten minutes", SECONDS / seconds),
                Row("images that ours saw", length, ""),
            ]
    raise SystemExit(f"ours did not reach {target:.1f} with {LENGTHS[-1]} images")


def _original_quality(params: Params, files: list[Path], validation: NDArray[np.uint8]) -> tuple[float, int]:
    """Squared error plus KL on held-out images after ten minutes, and the number of images seen."""
    torch.manual_seed(0)
    torch.set_num_threads(params.train.num_threads)
    model = PlainVAE(params)
    optimizer = torch.optim.Adam(model.vae.parameters(), lr=params.train.learning_rate)
    loader = DataLoader(Faces(files), params.train.batch_size, shuffle=True, num_workers=2)
    num_seen, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for images in loader:
            optimizer.zero_grad()
            terms = model(images)
            terms[0].backward()
            optimizer.step()
            _ = [term.item() for term in terms]
            num_seen += len(images)
            if time.perf_counter() > end:
                break
    device = torch.device("cpu")
    with torch.no_grad():
        losses = [float(model(to_unit_range(part, device).contiguous())[0]) for part in np.split(validation, 10)]
    return float(np.mean(losses)), num_seen


def _params(path: Path, model: dict[str, Any], training: dict[str, Any]) -> Params:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["data"]["image_size"] = IMAGE_SIZE
    tree["model"] |= model
    tree["train"] |= training
    return parse_params(tree, name=path.name)
