import numpy as np
import pytest
import scipy
import torch
from conftest import disc_images
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, laplace
from scipy.spatial.distance import cdist
from skimage.color import rgb2yuv
from sklearn.metrics.pairwise import polynomial_kernel

from facevae.errors import UserError
from facevae.evaluate.distances import (
    frechet_distance,
    kernel_distance,
    nearest_images,
    nearest_neighbours,
    sharpness,
    sharpness_ratio,
)
from facevae.model.pixels import batches_of

NOISE = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)


def blurred(images: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return gaussian_filter(images, (0, sigma, sigma, 0))  # type: ignore[no-any-return]


def features(num_images: int, dimension: int, seed: int) -> torch.Tensor:
    """Correlated features with a mean away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator)
    return torch.randn(num_images, dimension, generator=generator) @ mixing + torch.rand(dimension, generator=generator)


def exact_features(num_images: int, mean: list[float], deviation: list[float], seed: int) -> torch.Tensor:
    """Uncorrelated features with exactly this mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(num_images, len(mean), generator=generator, dtype=torch.float64)
    white: torch.Tensor = torch.linalg.qr(drawn - drawn.mean(0)).Q * (num_images - 1) ** 0.5
    return white * torch.tensor(deviation) + torch.tensor(mean)


def test_sharpness_matches_scipy() -> None:
    grey = rgb2yuv(NOISE)[..., 0]
    assert sharpness(NOISE) == pytest.approx(np.mean([laplace(image)[1:-1, 1:-1].var() for image in grey]), rel=1e-5)
    single = NOISE[..., :1]
    expected = np.mean([laplace(image / 255)[1:-1, 1:-1].var() for image in single[..., 0]])
    assert sharpness(single) == pytest.approx(expected, rel=1e-5)


def test_sharpness_ratio_refuses_flat_images() -> None:
    flat = np.full((3, 8, 8, 3), 99, np.uint8)
    with pytest.raises(UserError, match="data: every held-out image is of a single colour"):
        sharpness_ratio(flat, flat)


def test_sharpness_ratio_tells_blur_from_noise() -> None:
    images = disc_images(60, 32) // 2 * 2
    assert sharpness_ratio(images // 2, images) == pytest.approx(1 / 4)
    assert sharpness_ratio(blurred(images, 1), images) < 0.3
    noisy = images ^ np.random.default_rng(0).integers(0, 128, images.shape, dtype=np.uint8)
    assert sharpness_ratio(noisy, images) > 1.5


def test_frechet_distance_matches_the_matrix_root_formula() -> None:
    a, b = features(50, 6, seed=0), features(80, 6, seed=1)
    covariances = [np.cov(x.double().numpy(), rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float((a.double().mean(0) - b.double().mean(0)).square().sum()) + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dimension", [3, 40])
def test_frechet_distance_of_known_gaussians(dimension: int) -> None:
    a = exact_features(10, [0.0, 1.0, 2.0], [1.0, 2.0, 0.0], seed=0)
    b = exact_features(8, [1.0, 1.0, 0.0], [4.0, 2.0, 0.5], seed=1)
    turn = torch.linalg.qr(torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(2)).double()).Q
    turn = turn[:3]  # more dimensions than features: neither covariance has full rank
    expected = (1 + 0 + 4) + (3**2 + 0 + 0.5**2)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_matches_scikit_learn_without_the_diagonal() -> None:
    a, b = features(1100, 4, seed=0), features(900, 4, seed=1)
    within = []
    for x in (a, b):
        kernel = polynomial_kernel(x.double().numpy(), degree=3, coef0=1)
        within.append(kernel[~np.eye(len(x), dtype=bool)].mean())
    between = polynomial_kernel(a.double().numpy(), b.double().numpy(), degree=3, coef0=1).mean()
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_kernel_distance_of_equal_distributions_has_mean_zero() -> None:
    found = [kernel_distance(*features(40, 3, seed=i).split(20)) for i in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 300**0.5
    assert min(found) < 0


@pytest.mark.parametrize("batch_size", [7, 100])
def test_nearest_neighbours_match_a_full_search(batch_size: int) -> None:
    samples = np.concatenate([disc_images(9, seed=1), disc_images(5, seed=2) // 2])
    expected = cdist(samples.reshape(14, -1) / 255, NOISE.reshape(60, -1) / 255)
    batches = list(batches_of(samples, 14, torch.device("cpu")))
    indices, distances = nearest_neighbours(batches[0], batches_of(NOISE, batch_size, torch.device("cpu")))
    assert indices.tolist() == expected.argmin(1).tolist()
    assert distances.tolist() == pytest.approx(expected.min(1), rel=1e-6)


def test_repeated_image_is_found_at_distance_zero() -> None:
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    indices, distances = nearest_neighbours(images.flip(0), images.split(6))
    assert indices.tolist() == list(range(20))[::-1]
    assert distances.tolist() == pytest.approx([0] * 20, abs=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_nearest_images_match_a_full_search(mirrored: bool) -> None:
    images = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    queries, references = images[:4], images[4:]
    turned = [references, references.flip(3)] if mirrored else [references]
    distances = torch.stack([(queries[:, None] - part[None]).flatten(2).norm(dim=2) for part in turned])  # (turn, N, M)
    found = nearest_images(queries, references.split(2), mirrored=mirrored)
    for query in range(4):
        turn, index = np.unravel_index(int(distances[:, query].argmin()), (len(turned), 5))
        assert (int(found[0][query]), bool(found[2][query])) == (int(index), bool(turn))
        assert float(found[1][query]) == pytest.approx(float(distances[:, query].min()), rel=1e-6)
