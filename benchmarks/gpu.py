"""Training speed on this machine's GPU, and its share of the measured peak.

The peak is the product of two large matrices in the precision of the training. The benchmark needs PyTorch and facevae,
but neither DVC nor MLflow, and no images, since the cost of a step does not depend on their content. Without a GPU it
measures the CPU, which is good for trying it.
"""

import argparse
import statistics
import time

import numpy as np
import pandas as pd
import torch
import yaml
from measuring import NATIVE, ROOT
from torch.utils.flop_counter import FlopCounterMode

from facevae.config.params import parse_params
from facevae.config.schema import Params
from facevae.device import set_up_device, uses_bfloat16
from facevae.model.vae import VAE, new_model
from facevae.train.loop import Progress, Setup, train
from facevae.train.step import Optimization

PRESETS = ("presets/celeba.yaml", "presets/celeba-best.yaml", "params.yaml")
CELEBA_IMAGES = 202_599
NUM_REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="params files; default: three of them")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument(
        "--num-steps", type=int, default=50, help="steps in an epoch; four epochs are deterministic, then four are not"
    )
    parser.add_argument("--peak-size", type=int, default=8192, help="side of the square matrices that give the peak")
    arguments = parser.parse_args()
    first = params_of(arguments.presets[0], arguments.image_size, 1).train
    device = set_up_device(first)
    dtype = torch.bfloat16 if uses_bfloat16(first.precision, device) else torch.float32
    peak = peak_flops(arguments.peak_size, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: {peak / 1e12:.2f} TFLOP/s in products of {dtype} matrices", flush=True)
    rows = []
    for preset in arguments.presets:
        flops = flops_per_image(params_of(preset, arguments.image_size, 1), device)
        for batch_size in arguments.batch_sizes:
            params = params_of(preset, arguments.image_size, batch_size)
            speed, free_speed = images_per_second(params, arguments.num_steps)
            rows.append(
                {
                    "preset": preset,
                    "batch_size": batch_size,
                    "images_per_second": round(speed, 1),
                    "not_deterministic": round(free_speed, 1),
                    "GFLOP_per_image": round(flops / 1e9, 2),
                    "share_of_peak": round(speed * flops / peak, 3),
                    "minutes_per_CelebA_epoch": round(CELEBA_IMAGES / speed / 60, 2),
                }
            )
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


def params_of(preset: str, image_size: int, batch_size: int) -> Params:
    """The params of a preset for images of this size. Any number of steps may be skipped: the images are noise."""
    tree = yaml.safe_load((ROOT / preset).read_text(encoding="utf-8"))
    tree["data"]["image_size"] = image_size
    tree["train"] |= {"batch_size": batch_size, "epochs": 2 * (1 + NUM_REPEATS), "max_skipped_steps": 10**6}
    tree["train"] |= {"learning_rate_warmup_steps": 0, "kl_warmup_epochs": 0.0}  # longer than these few steps
    tree["train"] |= NATIVE
    return parse_params(tree, name=preset)


def peak_flops(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second in a product of square matrices, median of ten."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        start = now(device)
        left @ right
        seconds.append(now(device) - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def images_per_second(params: Params, num_steps: int) -> tuple[float, float]:
    """Speed of our loop with and without deterministic algorithms: medians over all epochs but the first."""
    size, channels = params.data.image_size, params.data.channels
    num_images = num_steps * params.train.batch_size
    images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, channels), dtype=np.uint8)
    ends: list[float] = []

    def note(_: Progress) -> None:
        ends.append(time.perf_counter())
        if len(ends) == params.train.epochs // 2:
            torch.set_deterministic_debug_mode("default")

    model = new_model(params.model, size, channels, seed=0)
    setup = Setup(images, images[:2], params.train, set_up_device(params.train), seed=0)
    train(model, setup, on_epoch=[note])
    seconds = np.diff(ends).tolist()
    return num_images / statistics.median(seconds[:NUM_REPEATS]), num_images / statistics.median(seconds[-NUM_REPEATS:])


def flops_per_image(params: Params, device: torch.device) -> float:
    """Floating-point operations per image of a step, forward and backward; convolutions and matrix products only."""
    size, channels = params.data.image_size, params.data.channels
    model: VAE = new_model(params.model, size, channels, seed=0).to(device)
    optimization = Optimization(model, params.train, 1, device)
    images = torch.rand(2, channels, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        optimization.take_step([(images, torch.randn(2, params.model.latent_dim, device=device))], len(images))
    return float(counter.get_total_flops() / len(images))


def now(device: torch.device) -> float:
    """The time once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
