"""What MLflow's page of a run says of it, in Markdown."""

import hashlib
from typing import TYPE_CHECKING

from facevae.tracking.repository import COMMIT_TAG, DIRTY_TAG
from facevae.tracking.runs import FINGERPRINT_TAG, NOTE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

OWN_NOTE_TAG = "mlflow.facevae.note"  # the digest of our text: a user's own stays
HEADLINES = {
    "squared_error": "squared error",
    "importance_weighted_bits_per_dimension": "bits per value",
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "frechet_distance": "Fréchet distance of samples",
    "edit_success": "edits that succeed",
}


def describe_run(client: "MlflowClient", run_id: str) -> bool:
    """Bring a run's description up to date, and tell whether it changed. One that a user wrote stays."""
    from mlflow.entities import RunTag

    run = client.get_run(run_id)
    recorded = run.data.tags.get(NOTE_TAG, "")
    text = _text(run)
    if text == recorded or (recorded and _digest(recorded) != run.data.tags.get(OWN_NOTE_TAG)):
        return False
    client.log_batch(run_id, tags=[RunTag(NOTE_TAG, text), RunTag(OWN_NOTE_TAG, _digest(text))])
    return True


def _text(run: "Run") -> str:
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    commit = tags.get(COMMIT_TAG, "")[:8]
    origin = f"commit `{commit}`{' with changes' if tags.get(DIRTY_TAG) == 'true' else ''}" if commit else "no commit"
    size, dimensions = params.get("data.image_size"), params.get("model.latent_dim")
    what = f"`{params.get('data.source')}`, {size} x {size} pixels, a latent of {dimensions} dimensions"
    lines = [  # the page folds all but the first
        f"{what}; from {origin}. To restore it: `facevae where {tags[FINGERPRINT_TAG][:8]}`",
        "",
        *(["| | |", "|---|---:|"] if HEADLINES.keys() & metrics.keys() else []),
        *(f"| {label} | {metrics[key]:.4g} |" for key, label in HEADLINES.items() if key in metrics),
    ]
    return "\n".join(lines)


def _digest(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
