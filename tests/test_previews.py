"""The pictures of each epoch: what they show, and the folder that holds them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import disc_images, small_params
from numpy.typing import NDArray
from PIL import Image

from facevae.model.vae import VAE, new_model
from facevae.storage.atomic import write_bytes
from facevae.train import previews
from facevae.train.loop import Progress
from facevae.train.previews import Previewer

IMAGES = disc_images(21, size=64)
PITCH = 66  # pixels from one image to the next


def model() -> VAE:
    return new_model(small_params().model, 64, 3, seed=0).eval()


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_originals_stand_above_their_reconstructions() -> None:
    sheet = pixels_of(Previewer(IMAGES, 3, seed=0).draw(model())["reconstructions"])
    with torch.no_grad():
        images = torch.from_numpy(IMAGES[:8]).permute(0, 3, 1, 2) / 255
        decoded = model().decode(model().encode(images).mean).permute(0, 2, 3, 1) * 255
    assert sheet.shape == (PITCH + 64, 7 * PITCH + 64, 3)
    for column in range(8):
        left = column * PITCH
        np.testing.assert_array_equal(sheet[:64, left : left + 64], IMAGES[column])
        np.testing.assert_allclose(sheet[PITCH:, left : left + 64], decoded[column], atol=0.51)


def test_samples_have_the_moments_of_the_aggregate_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with latents drawn from the posterior of each image in turn."""
    monkeypatch.setattr(previews, "NUM_SAMPLES", 40_000)
    decoded: list[torch.Tensor] = []

    def keep(_: VAE, latent: torch.Tensor) -> NDArray[np.uint8]:
        decoded.append(latent)
        return np.broadcast_to(np.uint8(0), (len(latent), 64, 64, 3))

    monkeypatch.setattr(previews, "decode_all", keep)
    monkeypatch.setattr(previews, "sheet_of", lambda _: (np.zeros((1, 1, 3), np.uint8), 1))
    Previewer(IMAGES, 3, seed=0).draw(model())
    with torch.no_grad():
        posterior = model().encode(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255)
    generator = torch.Generator().manual_seed(1)
    draws = torch.cat([posterior.sample(generator) for _ in range(4000)])
    torch.testing.assert_close(decoded[0].mean(0), draws.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(decoded[0].T.cov(), draws.T.cov(), atol=0.04, rtol=0)


def test_another_seed_gives_other_samples_of_the_same_images() -> None:
    one, same, other = (Previewer(IMAGES, 3, seed=seed).draw(model()) for seed in (1, 1, 2))
    assert one == same
    assert one["reconstructions"] == other["reconstructions"]
    assert one["samples"] != other["samples"]


def test_few_small_grey_images_are_drawn() -> None:
    grey = new_model(small_params().model, 8, 1, seed=0).eval()
    drawn = Previewer(disc_images(2, channels=1), 3, seed=0).draw(grey)
    assert pixels_of(drawn["reconstructions"]).shape == (2 * 72 + 2, 2 * 72 + 2, 3)


def test_a_folder_holds_exactly_the_previews_so_far(tmp_path: Path) -> None:
    """As after a kill, when DVC has removed the folder, or after another training."""
    write_bytes(tmp_path / "samples" / "1.png", b"one")
    write_bytes(tmp_path / "samples" / "3.png", b"of another training")
    untouched = (tmp_path / "samples" / "1.png").stat().st_mtime_ns
    previews.write(tmp_path, Progress([], {}, [{"samples": b"one"}, {"samples": b"two", "other": b"2"}]))
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert found == {"samples/1.png": b"one", "samples/2.png": b"two", "other/2.png": b"2"}
    assert (tmp_path / "samples" / "1.png").stat().st_mtime_ns == untouched
