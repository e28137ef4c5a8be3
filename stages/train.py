"""Train the model on the prepared set and keep the weights of its best epoch."""

from facevae import checkpoint, tracking
from facevae.errors import reported_errors
from facevae.files import write_csv, write_json
from facevae.fingerprint import refuse_change, training_fingerprint
from facevae.layout import HISTORY, MODEL, TRAIN_METRICS
from facevae.params import load_params
from facevae.prepared import PreparedSet
from facevae.training import train


def main() -> None:
    params = load_params()
    prepared = PreparedSet()
    fingerprint = training_fingerprint(params, prepared.digest)
    with tracking.open_run("train") as run:
        images, validation_images = prepared.images("train"), prepared.images("validation")
        result = train(images, validation_images, params.model, params.train, seed=params.seed, on_epoch=run.log_epoch)
        refuse_change(fingerprint, training_fingerprint(load_params(), PreparedSet().digest))
        checkpoint.save(MODEL, result.model, params.train, prepared.manifest.crop, fingerprint)
        write_csv(HISTORY, result.history)
        write_json(TRAIN_METRICS, result.summary())


if __name__ == "__main__":
    with reported_errors():
        main()
