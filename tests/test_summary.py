from conftest import small_params

from facevae.model.vae import VAE
from facevae.summary import summarize


def test_summary_counts_every_parameter() -> None:
    demo = small_params().model
    text = summarize(demo, 8, 3)
    total = sum(weight.numel() for weight in VAE(demo, 8, 3).parameters())
    rows = [line.split() for line in text.splitlines()[1:-1]]
    assert text.splitlines()[-1] == f"{total:,} parameters"
    assert sum(int(row[-1].replace(",", "")) for row in rows) == total - 1  # log_sigma belongs to no layer
    assert "16 x 2 x 2" in text
