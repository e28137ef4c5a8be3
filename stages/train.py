"""Train the model on the prepared set and keep the weights of its best epoch."""

from facevae import checkpoint, tracking
from facevae.errors import reported_errors
from facevae.files import write_csv, write_json
from facevae.fingerprint import inputs_digest, refuse_change, training_fingerprint
from facevae.hardware import platform
from facevae.layout import HISTORY, MODEL, TRAIN_METRICS
from facevae.model import new_model
from facevae.params import load_params
from facevae.prepared import PreparedSet
from facevae.resume import ResumeFile
from facevae.training import train
from facevae.workers import joined_workers


def main() -> None:
    before = inputs_digest("train")
    params = load_params()
    prepared = PreparedSet().verified()
    split, manifest = (prepared.images("train"), prepared.images("validation")), prepared.manifest
    fingerprint = training_fingerprint(params, prepared.digest, platform(params.train))
    model = new_model(params.model, manifest.image_size, manifest.channels, seed=params.seed)
    with joined_workers(params.train, fingerprint) as workers:
        if not workers.leads:
            train(model, *split, params.train, seed=params.seed, workers=workers)
            return
        with ResumeFile(fingerprint) as resume, tracking.open_run("train") as run:
            start, told = resume.load(), [resume.save, lambda progress: run.log_epoch(progress.rows[-1])]
            result = train(model, *split, params.train, seed=params.seed, workers=workers, start=start, on_epoch=told)
            refuse_change(before, inputs_digest("train"))
            checkpoint.save(MODEL, result.model, params.train, manifest.crop, fingerprint)
            write_csv(HISTORY, result.history)
            write_json(TRAIN_METRICS, result.summary())


if __name__ == "__main__":
    with reported_errors("lower train.micro_batch_size, train.batch_size, model.channels or data.image_size"):
        main()
