"""Render the figures of the trained model."""

from facevae import stage_script
from facevae.config.params import load_params
from facevae.config.paths import PLOTS
from facevae.device import set_up_device
from facevae.figures.gallery import load_results, render_all
from facevae.fingerprint import inputs_digest, refuse_change
from facevae.tracking import stage_run


def main() -> None:
    before = inputs_digest("figures")
    params = load_params()
    results = load_results()
    results.model.to(set_up_device(params.train))
    with stage_run.open_run("figures"):
        render_all(PLOTS, results, params.figures, horizontal_flip=params.train.horizontal_flip, seed=params.seed)
        refuse_change(before, inputs_digest("figures"))


if __name__ == "__main__":
    stage_script.run(main, "lower figures.num_samples, figures.num_reconstructions or model.channels")
