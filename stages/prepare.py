"""Draw, read or download raw images and write the prepared set."""

from facevae import stage_script
from facevae.config.checks import require_attributes
from facevae.config.needs import needs_of
from facevae.config.params import load_params
from facevae.config.paths import PREPARED
from facevae.config.processor import require_processor
from facevae.data.preparation import prepare
from facevae.data.sources.dispatch import fetch, open_source
from facevae.data.sources.links import refuse_linked_folders
from facevae.fingerprint import inputs_digest, refuse_change


def main() -> None:
    require_processor(load_params().train)
    refuse_linked_folders(load_params().data)
    fetch(load_params().data)  # before the digest, because a download adds to the inputs
    before = inputs_digest("prepare")
    params = load_params()
    source = open_source(params.data, params.seed)
    require_attributes(params, source.attributes.columns)  # here, because later stages would fail after training
    manifest = prepare(source, params.data, params.seed, PREPARED, needs_of(params))
    refuse_change(before, inputs_digest("prepare"))
    print(f"{PREPARED}: {manifest.summary()}")


if __name__ == "__main__":
    stage_script.run(main, "lower data.image_size, or close other programs")
