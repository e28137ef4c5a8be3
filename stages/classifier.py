"""Train the attribute classifier, which judges samples and edits, on the training images."""

from facevae import stage_script
from facevae.config.params import load_params
from facevae.config.paths import CLASSIFIER
from facevae.data.prepared import PreparedSet
from facevae.device import set_up_device
from facevae.evaluate.judge import save_classifier
from facevae.evaluate.judge_training import train_classifier
from facevae.fingerprint import inputs_digest, refuse_change


def main() -> None:
    before = inputs_digest("classifier")
    params = load_params()
    prepared = PreparedSet().verified()
    images, attributes = prepared.images("train"), prepared.attributes("train")
    classifier = train_classifier(
        images,
        attributes,
        params.classifier,
        params.train.precision,
        set_up_device(params.train),
        horizontal_flip=params.train.horizontal_flip,
        seed=params.seed,
    )
    refuse_change(before, inputs_digest("classifier"))
    save_classifier(CLASSIFIER, classifier, data_digest=prepared.digest)


if __name__ == "__main__":
    stage_script.run(main, "lower classifier.batch_size or data.image_size")
