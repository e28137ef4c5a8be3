"""Compare the metrics in the work tree with the committed ones.

With `train.numerics: portable`, metrics, figures and dvc.lock must have the committed bytes on every processor.

With native numerics, the exit status is 1 if a metric differs by more than its tolerance, and a Markdown table shows
all. On one machine the metrics are equal to the last digit. Another processor rounds differently (bfloat16 or float32,
the order of sums), and training amplifies that.
"""

import json
import subprocess
import sys
from pathlib import Path

from facevae.config.params import load_params

EXACT = ("metrics", "plots", "dvc.lock")  # the last has the digests of data and weights
METRICS = (Path("metrics/evaluate.json"), Path("metrics/train.json"))
TOLERANCE = 0.10  # relative
TOLERANCES = {  # relative, where the default does not fit
    "active_units": 0.35,
    "aggregate_kl_nats": 0.25,
    "edit_leakage": 0.5,
    "edit_ssim": 0.05,
    "elbo_bits_per_dimension": 0.02,
    "elbo_nats": 0.02,
    "fitted_prior_bits_per_dimension": 0.02,
    "calibrated_bits_per_dimension": 0.02,
    "frechet_distance": 0.5,
    "importance_weighted_bits_per_dimension": 0.02,
    "importance_weighted_nats": 0.02,
    "neighbour_distance_ratio": 0.2,
    "psnr_db": 0.03,
    "sharpness_ratio": 0.2,
    "sliced_wasserstein_distance": 0.2,
    "ssim": 0.03,
    "validation_frechet_distance": 0.5,
}
NOT_COMPARED = {  # counts that rounding can change, and numbers near zero
    "best_epoch",
    "copied_share",
    "edit_success_random",
    "heldout_latent_nats",
    "kernel_distance",
    "total_skipped_steps",
}


def main() -> int:
    if load_params().train.numerics == "portable":
        return _compare_bytes()
    return _compare_values()


def _compare_bytes() -> int:
    command = ["git", "status", "--porcelain", "--", *EXACT]
    changed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    print(f"```\n{changed}```\nother bytes than committed" if changed else "The bytes are those committed.")
    return int(bool(changed))


def _compare_values() -> int:
    made: dict[str, float] = {}
    committed: dict[str, float] = {}
    for path in METRICS:
        made |= json.loads(path.read_text(encoding="utf-8"))
        shown = subprocess.run(["git", "show", f"HEAD:{path.as_posix()}"], capture_output=True, check=True)
        committed |= json.loads(shown.stdout)
    if set(made) != set(committed):
        print(f"other metrics than committed: {', '.join(sorted(set(made) ^ set(committed)))}")
        return 1
    print("| metric | committed | measured here | difference | allowed | |\n|---|---:|---:|---:|---:|---|")
    failed = False
    for name in sorted(set(made) - NOT_COMPARED):
        value = made[name]
        difference = abs(value - committed[name]) / max(abs(committed[name]), 1e-12)
        allowed = TOLERANCES.get(name, TOLERANCE)
        failed |= not difference <= allowed
        verdict = "ok" if difference <= allowed else "**off**"
        print(f"| {name} | {committed[name]:.6g} | {value:.6g} | {difference:.2%} | {allowed:.0%} | {verdict} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
