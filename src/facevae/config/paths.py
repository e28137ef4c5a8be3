"""The paths of the pipeline's files, relative to the project root. dvc.yaml declares the same paths."""

from pathlib import Path

PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
MODEL = Path("models/vae.safetensors")
CLASSIFIER = Path("models/classifier.safetensors")
PRIORS = Path("models/priors.safetensors")
DIRECTIONS = Path("models/directions.safetensors")
EDITOR = Path("models/editor.html")
TRAIN_METRICS = Path("metrics/train.json")
EVALUATE_METRICS = Path("metrics/evaluate.json")
PLOTS = Path("plots")
HISTORY = PLOTS / "history.csv"
EPOCHS = PLOTS / "epochs"  # NAME/EPOCH.png
LATENT = PLOTS / "latent.csv"
EDITS = PLOTS / "edits.csv"
LEAKAGE = PLOTS / "leakage.csv"
