"""Render the figures of the trained model."""

from facevae import tracking
from facevae.errors import reported_errors
from facevae.fingerprint import inputs_digest, refuse_change
from facevae.gallery import load_results, render_all
from facevae.hardware import set_up_device
from facevae.layout import PLOTS
from facevae.params import load_params


def main() -> None:
    before = inputs_digest("figures")
    params = load_params()
    results = load_results()
    results.model.to(set_up_device(params.train))
    with tracking.open_run("figures"):
        render_all(PLOTS, results, params.figures, params.seed)
        refuse_change(before, inputs_digest("figures"))


if __name__ == "__main__":
    with reported_errors("lower figures.num_samples, figures.num_reconstructions or model.channels"):
        main()
