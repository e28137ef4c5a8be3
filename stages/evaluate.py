"""Fit priors and attribute directions to the training posteriors, and measure the model on held-out images."""

from facevae import stage_script
from facevae.config.params import load_params
from facevae.config.paths import CLASSIFIER, DIRECTIONS, EVALUATE_METRICS, MODEL, PLOTS, PRIORS
from facevae.data.prepared import PreparedSet
from facevae.device import set_up_device
from facevae.evaluate.directions import save_directions
from facevae.evaluate.evaluation import evaluate
from facevae.evaluate.judge import load_classifier
from facevae.fingerprint import inputs_digest, refuse_change
from facevae.model import checkpoint
from facevae.priors.fitting import save_priors
from facevae.storage.tables import write_csvs, write_json
from facevae.tracking import stage_run


def main() -> None:
    before = inputs_digest("evaluate")
    params = load_params()
    prepared = PreparedSet().verified()
    model, header = checkpoint.load(MODEL)
    classifier = load_classifier(CLASSIFIER, data_digest=prepared.digest)
    device = set_up_device(params.train)
    model.to(device), classifier.to(device)
    with stage_run.open_run("evaluate"):
        mirrors = params.train.horizontal_flip
        evaluation = evaluate(
            model, header, classifier, prepared, params.evaluate, horizontal_flip=mirrors, seed=params.seed
        )
        refuse_change(before, inputs_digest("evaluate"))
        save_priors(PRIORS, evaluation.priors, fingerprint=header.fingerprint)
        save_directions(DIRECTIONS, evaluation.directions, fingerprint=header.fingerprint)
        write_csvs(PLOTS, evaluation.tables)
        write_json(EVALUATE_METRICS, evaluation.metrics)


if __name__ == "__main__":
    stage_script.run(main, "lower evaluate.batch_size, evaluate.num_samples or evaluate.num_edited_images")
