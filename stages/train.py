"""Train the model on the prepared set, keep the weights of its best epoch, and sharpen its decoder if asked to."""

from functools import partial

from facevae import stage_script
from facevae.config.params import load_params
from facevae.config.paths import EPOCHS, HISTORY, MODEL, TRAIN_METRICS
from facevae.data.prepared import PreparedSet
from facevae.device import platform, set_up_device
from facevae.fingerprint import inputs_digest, refuse_change, training_fingerprint
from facevae.model import checkpoint, vae
from facevae.storage.tables import write_csv, write_json
from facevae.tracking import stage_run
from facevae.train import distributed, loop, phases, previews, resume


def main() -> None:
    before, params = inputs_digest("train"), load_params()
    prepared = PreparedSet().verified()
    images, manifest = (prepared.images("train"), prepared.images("validation")), prepared.manifest
    device = set_up_device(params.train)
    fingerprint = training_fingerprint(params, prepared.digest, platform(device, params.train.numerics))
    model = vae.new_model(params.model, manifest.image_size, manifest.channels, seed=params.seed)
    with distributed.joined_workers(device, fingerprint) as workers:
        setup = loop.Setup(*images, params.train, device, seed=params.seed, workers=workers, draw=True)
        if not workers.leads:
            phases.train_and_sharpen(model, setup, params.sharpen)
            return
        with resume.ResumeFile(fingerprint) as file, stage_run.open_run("train") as run:
            on_epoch = file.save, run.log_progress, partial(previews.write, EPOCHS)
            result = phases.train_and_sharpen(model, setup, params.sharpen, start=file.load(), on_epoch=on_epoch)
            refuse_change(before, inputs_digest("train"))
            checkpoint.save(MODEL, result.model, params.train, manifest.crop, fingerprint)
            write_csv(HISTORY, result.history)
            write_json(TRAIN_METRICS, result.summary())


if __name__ == "__main__":
    stage_script.run(main, "lower train.micro_batch_size, train.batch_size, sharpen.batch_size or model.channels")
