"""Write the face editor, a page that runs the trained model in a browser."""

from facevae import stage_script
from facevae.config.params import load_params
from facevae.config.paths import DIRECTIONS, EDITOR, MODEL, PRIORS
from facevae.device import set_up_device
from facevae.editor.page import build_page
from facevae.evaluate.directions import load_directions
from facevae.fingerprint import inputs_digest, refuse_change
from facevae.model import checkpoint
from facevae.priors.fitting import load_priors
from facevae.storage.atomic import write_bytes
from facevae.tracking import stage_run


def main() -> None:
    before = inputs_digest("editor")
    params = load_params()
    set_up_device(params.train)
    model, header = checkpoint.load(MODEL)
    priors = load_priors(PRIORS, fingerprint=header.fingerprint)
    directions = load_directions(DIRECTIONS, fingerprint=header.fingerprint)
    with stage_run.open_run("editor"):
        page = build_page(model, header, priors, directions, seed=params.seed)
        refuse_change(before, inputs_digest("editor"))
        write_bytes(EDITOR, page.encode())


if __name__ == "__main__":
    stage_script.run(main, "lower model.channels")
