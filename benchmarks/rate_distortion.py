"""Plot the sweep's experiments by rate (KL) and distortion (squared error), one line for each latent size.

A higher beta lowers the rate and raises the distortion; the models of one family lie on a curve (Alemi et al. 2018,
arXiv 1711.00464). `make sweep` runs the experiments and this script.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from facevae.config.paths import EVALUATE_METRICS
from facevae.errors import UserError, reported_errors
from facevae.tracking.project_files import open_files
from facevae.tracking.repository import Repository
from facevae.tracking.state import State


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prefix", help="prefix of the experiments' names")
    parser.add_argument("figure", type=Path, help="the PNG file to write")
    arguments = parser.parse_args()
    with reported_errors():
        table = read_experiments(Path(), arguments.prefix)
        print(table.to_string(index=False))
        draw(table).savefig(arguments.figure, metadata={"Software": None})  # no version of matplotlib in the bytes


def read_experiments(root: Path, prefix: str) -> pd.DataFrame:
    """Names, params and metrics of the experiments, one row each."""
    rows = []
    for commit in Repository(root).experiments():
        if not commit.experiment.startswith(prefix):
            continue
        state = State(open_files(root, commit.revision))
        metrics = json.loads(state.read(EVALUATE_METRICS.as_posix()))
        rows.append(
            {
                "experiment": commit.experiment,
                "latent_dim": state.param("model.latent_dim"),
                "beta": state.param("train.beta"),
                "kl_nats": metrics["kl_nats"],
                "squared_error": metrics["squared_error"],
                "active_units": metrics["active_units"],
            }
        )
    if not rows:
        raise UserError(f"no experiment is named {prefix}*: see `dvc exp list`, or run `make sweep`")
    return pd.DataFrame(rows).sort_values(["latent_dim", "beta"])


def draw(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for latent_dim, rows in table.groupby("latent_dim"):
        axes.plot(rows["kl_nats"], rows["squared_error"], marker="o", label=f"latent_dim {latent_dim}")
        for row in rows.itertuples():
            axes.annotate(
                f"$\\beta$ {row.beta:g}", (row.kl_nats, row.squared_error), (5, 5), textcoords="offset points"
            )
    axes.set_xlabel("rate: KL divergence (nats)")
    axes.set_ylabel("distortion: squared error of an image")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
