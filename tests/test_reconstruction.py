import pytest
import torch
from conftest import disc_images, small_params
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from facevae.evaluate.reconstruction import psnr_db, reconstruction_metrics, ssim
from facevae.model import objective
from facevae.model.inference import encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE

IMAGES = torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0))[..., :20, :]
NOISY = (IMAGES + 0.1 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_matches_scikit_image(channels: int) -> None:
    images, noisy = IMAGES[:, :channels], NOISY[:, :channels]
    expected = [
        structural_similarity(
            x.numpy(), y.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        for x, y in zip(noisy, images, strict=True)
    ]
    assert ssim(noisy, images).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [8, 9, 28])
def test_ssim_of_an_image_with_itself_is_one(size: int) -> None:
    images = torch.rand(2, 1, size, size)
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert (ssim(1 - images, images) < 0.5).all()


def test_psnr_matches_scikit_image() -> None:
    expected = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1.0) for x, y in zip(IMAGES, NOISY, strict=True)
    ]
    assert psnr_db(NOISY, IMAGES).tolist() == pytest.approx(expected, abs=1e-4)


def test_metrics_are_means_over_images_for_any_batch_size() -> None:
    images = disc_images(23)
    torch.manual_seed(0)
    model = VAE(small_params(model__normalization="batch").model, 8, 3).eval()
    posteriors = encode_all(model, images)
    found = [reconstruction_metrics(model, images, posteriors, batch_size=size, seed=3) for size in (1, 7, 100)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    with torch.no_grad():
        batch = to_unit_range(images, torch.device("cpu"))
        reconstruction = model.decode(posteriors.sample(torch.Generator().manual_seed(3)))
        from_mean = model.decode(posteriors.mean)
    expected = {
        "squared_error": float((reconstruction - batch).square().sum((1, 2, 3)).mean()),
        "kl_nats": float(objective.kl_nats(posteriors).mean()),
        "psnr_db": float(psnr_db(from_mean, batch).mean()),
        "ssim": float(ssim(from_mean, batch).mean()),
    }
    expected["squared_error_plus_kl"] = expected["squared_error"] + expected["kl_nats"]
    assert found[0] == pytest.approx(expected, rel=1e-4)
