import numpy as np
import pytest
import torch
from conftest import disc_images, small_params
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from facevae import objective
from facevae.metrics import active_units, evaluate, psnr_db, ssim
from facevae.model import VAE, to_unit_range
from facevae.params import Likelihood

IMAGES = torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0))[..., :20, :]
NOISY = (IMAGES + 0.1 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels: int) -> None:
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


def test_psnr_is_that_of_scikit_image() -> None:
    expected = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1.0) for x, y in zip(IMAGES, NOISY, strict=True)
    ]
    assert psnr_db(NOISY, IMAGES).tolist() == pytest.approx(expected, abs=1e-4)


def test_active_units_are_those_whose_mean_moves() -> None:
    means = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.12, 0.08, 0.0]) + 3
    assert active_units(means) == 2


@pytest.mark.parametrize("likelihood", ["squared_error", "gaussian", "bernoulli"])
def test_metrics_are_means_over_all_images_whatever_the_batch(likelihood: Likelihood) -> None:
    images = disc_images(23)
    torch.manual_seed(0)
    model = VAE(small_params(model__normalization="batch").model, 8, 3).eval()
    found = [evaluate(model, images, likelihood, batch_size=size, seed=3) for size in (1, 7, 100)]
    for other in found[1:]:
        assert other.metrics == pytest.approx(found[0].metrics, rel=1e-4)
    metrics = found[0].metrics
    assert metrics["squared_error_plus_kl"] == pytest.approx(metrics["squared_error"] + metrics["kl_nats"])
    with torch.no_grad():
        posterior = model.encode(to_unit_range(images, torch.device("cpu")))
    assert metrics["kl_nats"] == pytest.approx(float(objective.kl_nats(posterior).mean()), rel=1e-4)
    assert found[0].kl_table()["kl_nats"].sum() == pytest.approx(metrics["kl_nats"], rel=1e-4)
    assert torch.allclose(found[0].means, posterior.mean, atol=1e-5)


def test_the_elbo_of_squared_error_is_that_of_a_gaussian_of_variance_one_half() -> None:
    images = disc_images(10)
    model = VAE(small_params().model, 8, 3).eval()
    as_error = evaluate(model, images, "squared_error", batch_size=4, seed=0).metrics
    as_gaussian = evaluate(model, images, "gaussian", batch_size=4, seed=0).metrics  # log_sigma begins at that variance
    assert as_error["elbo_nats"] == pytest.approx(as_gaussian["elbo_nats"], rel=1e-6)
    assert as_error["elbo_nats"] < -0.5 * 192 * np.log(np.pi)


def test_the_kl_table_is_sorted() -> None:
    model = VAE(small_params(model__latent_dim=6).model, 8, 3).eval()
    table = evaluate(model, disc_images(10), "squared_error", batch_size=4, seed=0).kl_table()
    assert table["kl_nats"].is_monotonic_decreasing
    assert sorted(table["dimension"]) == list(range(6))
    assert table["rank"].to_list() == [1, 2, 3, 4, 5, 6]
