"""Train the model on the prepared set and keep the weights of its best epoch."""

from facevae import checkpoint, tracking
from facevae.errors import reported_errors
from facevae.files import write_csv, write_json
from facevae.fingerprint import training_fingerprint
from facevae.layout import HISTORY, METRICS, MODEL
from facevae.params import load_params
from facevae.prepared import PreparedSet
from facevae.training import train


def main() -> None:
    params = load_params()
    prepared = PreparedSet()
    with tracking.open_run(params, prepared, stage="train") as run:
        result = train(
            prepared.images("train"),
            prepared.images("validation"),
            params.model,
            params.train,
            seed=params.seed,
            on_epoch=run.log_epoch,
        )
        fingerprint = training_fingerprint(params, prepared.digest)
        checkpoint.save(MODEL, result.model, likelihood=params.train.likelihood, fingerprint=fingerprint)
        write_csv(HISTORY, result.history)
        write_json(METRICS / "train.json", result.summary())
        run.log_metrics(result.summary())
        run.log_model(MODEL, fingerprint)


if __name__ == "__main__":
    with reported_errors():
        main()
