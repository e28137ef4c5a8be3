"""Measure the model on held-out images, and fit the directions of the attributes on the training images."""

from facevae import attributes, checkpoint, tracking
from facevae.errors import reported_errors
from facevae.files import write_csv, write_json
from facevae.hardware import set_up_device
from facevae.inference import encode_all
from facevae.layout import DIRECTIONS, EVALUATE_METRICS, MODEL, PLOTS
from facevae.metrics import evaluate
from facevae.params import load_params
from facevae.prepared import PreparedSet


def main() -> None:
    params = load_params()
    prepared = PreparedSet()
    split, batch_size = params.evaluate.split, params.evaluate.batch_size
    model, header = checkpoint.load(MODEL)
    model.to(set_up_device(params.train))
    with tracking.open_run("evaluate"):
        evaluation = evaluate(model, prepared.images(split), header.likelihood, batch_size=batch_size, seed=params.seed)
        train_means = encode_all(model, prepared.images("train"), batch_size)
        directions = attributes.fit_directions(train_means, prepared.attributes("train"))
        attributes.save_directions(DIRECTIONS, directions, fingerprint=header.fingerprint)
        auc = attributes.auc_table(evaluation.means, prepared.attributes(split), directions)
        write_csv(PLOTS / "attribute_auc.csv", auc)
        write_csv(PLOTS / "kl_per_dimension.csv", evaluation.kl_table())
        write_json(EVALUATE_METRICS, evaluation.metrics)


if __name__ == "__main__":
    with reported_errors():
        main()
