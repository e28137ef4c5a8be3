import numpy as np
import torch
from conftest import disc_images, small_params

from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE

IMAGES = disc_images(12)


def test_encoding_and_decoding_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    model = VAE(small_params(model__normalization="batch", model__dropout=0.5).model, 8, 3).eval()
    whole = model.encode(to_unit_range(IMAGES, torch.device("cpu"))).mean.detach()
    for batch_size in (1, 5, 12):
        torch.testing.assert_close(encode_all(model, IMAGES, batch_size).mean, whole, atol=1e-5, rtol=1e-4)
    grid = whole.view(3, 4, 3)
    expected = (model.decode(whole).detach() * 255).round().permute(0, 2, 3, 1).numpy().reshape(3, 4, 8, 8, 3)
    assert np.abs(decode_all(model, grid, batch_size=5).astype(int) - expected).max() <= 1
