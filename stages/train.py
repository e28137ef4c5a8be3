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
from facevae.training import Progress, train


def main() -> None:
    before = inputs_digest("train")
    params = load_params()
    prepared = PreparedSet().verified()
    split, manifest = (prepared.images("train"), prepared.images("validation")), prepared.manifest
    fingerprint = training_fingerprint(params, prepared.digest, platform(params.train))
    resume = ResumeFile(fingerprint)
    model = new_model(params.model, manifest.image_size, manifest.channels, seed=params.seed)
    with tracking.open_run("train") as run:

        def on_epoch(progress: Progress) -> None:
            resume.save(progress)
            run.log_epoch(progress.rows[-1])

        result = train(model, *split, params.train, seed=params.seed, start=resume.load(), on_epoch=on_epoch)
        refuse_change(before, inputs_digest("train"))
        checkpoint.save(MODEL, result.model, params.train, manifest.crop, fingerprint)
        write_csv(HISTORY, result.history)
        write_json(TRAIN_METRICS, result.summary())
    resume.remove()


if __name__ == "__main__":
    with reported_errors("lower train.batch_size, model.channels or data.image_size"):
        main()
