"""Render the figures of the trained model."""

import pandas as pd

from facevae import checkpoint, tracking
from facevae.attributes import load_directions
from facevae.errors import reported_errors
from facevae.gallery import render_all
from facevae.hardware import set_up_device
from facevae.layout import DIRECTIONS, HISTORY, MODEL, PLOTS
from facevae.params import load_params
from facevae.prepared import PreparedSet


def main() -> None:
    params = load_params()
    prepared = PreparedSet()
    model, header = checkpoint.load(MODEL)
    model.to(set_up_device(params.train))
    directions = load_directions(DIRECTIONS, fingerprint=header.fingerprint)
    history = pd.read_csv(HISTORY)
    with tracking.open_run("figures"):
        render_all(PLOTS, model, directions, prepared, history, params.figures, params.seed)


if __name__ == "__main__":
    with reported_errors():
        main()
