import numpy as np
import pytest
import torch
from conftest import disc_images
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import wasserstein_distance

from facevae.evaluate import sliced_wasserstein
from facevae.evaluate.sliced_wasserstein import (
    SlicedWasserstein,
    laplacian_pyramid,
    project_patches,
    sorted_distance,
)

NOISE = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)


def distance(images: NDArray[np.uint8], samples: NDArray[np.uint8], *, seed: int) -> SlicedWasserstein:
    return project_patches(images, seed=seed).distance(project_patches(samples, seed=seed))


@pytest.fixture(autouse=True)
def _fewer_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_wasserstein, "NUM_PATCHES", 2**12)


def blurred(images: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return gaussian_filter(images, (0, sigma, sigma, 0))  # type: ignore[no-any-return]


def test_set_has_distance_zero_to_itself() -> None:
    images = disc_images(60, 32)
    assert distance(images, images, seed=0).levels == {32: 0, 16: 0}
    assert distance(images, np.repeat(images, 2, axis=0), seed=0).mean == 0


def test_distance_is_symmetric_and_fixed_by_its_seed() -> None:
    images, samples = disc_images(60), NOISE[:40]
    first = distance(images, samples, seed=0).mean
    torch.rand(1)
    assert distance(samples, images, seed=0).mean == first
    assert distance(images, samples, seed=1).mean != first
    assert distance(images, samples, seed=1).mean == pytest.approx(first, rel=0.1)


def test_distance_falls_with_the_blur() -> None:
    images = disc_images(100, 32)
    distances = [
        distance(images, blurred(disc_images(100, 32, seed=1), sigma), seed=0).mean for sigma in (2, 1, 0.5, 0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1]


def test_brightness_and_contrast_do_not_count() -> None:
    images = disc_images(60, 32) // 2 * 2
    assert distance(images, images // 2 + 20, seed=0).mean < 0.01
    assert distance(images // 2 + 20, disc_images(60, 32), seed=0).mean < 10


def test_brightness_and_contrast_of_one_channel_do_not_count() -> None:
    images = disc_images(60, 32) // 2 * 2
    tinted = images.copy()
    tinted[..., 0] = images[..., 0] // 2
    tinted[..., 1] = images[..., 1] // 2 + 20
    assert distance(images, tinted, seed=0).mean < 0.01


def test_distance_appears_at_the_level_that_differs() -> None:
    generator = np.random.default_rng(0)
    slope = np.linspace(-60, 60, 32)[:, None, None]
    tilted = 128 + generator.choice([-1, 1], (100, 1, 1, 1)) * slope
    level = 128 + generator.choice([-60, 60], (100, 1, 1, 1)) + 0 * slope
    white = generator.normal(0, 10, (100, 32, 32, 1))
    checks = generator.choice([-20, 0, 20], (100, 1, 1, 1)) * (-1) ** np.indices((32, 32)).sum(0)[..., None]

    def distances(images: NDArray[np.float64], samples: NDArray[np.float64]) -> dict[int, float]:
        return distance(images.astype(np.uint8), samples.astype(np.uint8), seed=0).levels

    fine = distances(tilted + white, tilted + checks)
    coarse = distances(tilted + white, level + white)
    assert fine[32] > 5 * fine[16]
    assert coarse[16] > 5 * coarse[32]


@pytest.mark.parametrize(("size", "levels"), [(8, [8]), (28, [28]), (31, [31, 16]), (64, [64, 32, 16])])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_end_at_16_pixels(size: int, levels: list[int], channels: int) -> None:
    images, samples = disc_images(11, size, channels), disc_images(7, size, channels, seed=1)
    found = distance(images, samples, seed=0)
    assert list(found.levels) == levels
    assert min(found.levels.values()) > 0
    assert found.mean == pytest.approx(np.mean(list(found.levels.values())))


def test_flat_images_have_finite_distances() -> None:
    flat = np.full_like(disc_images(20, 32), 77)
    assert distance(flat, flat // 2, seed=0).mean < 50
    assert 100 < distance(flat, disc_images(20, 32), seed=0).mean < 2000


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(8, 8, 3\), samples \(16, 16, 3\)"):
        distance(NOISE, disc_images(5, 16), seed=0)


def test_distance_on_a_line_matches_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 50)), generator.exponential(size=(3, 50))
    expected = np.mean([wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)])
    assert sorted_distance(np.sort(a).astype(np.float32), np.sort(b).astype(np.float32)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("size", [16, 17])
def test_laplacian_pyramid_matches_scipy_filters(size: int) -> None:
    images = np.random.default_rng(0).random((2, 3, size, size))
    window = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256
    coarse = convolve(images, window, mode="mirror")[..., ::2, ::2]
    spread = np.kron(coarse, [[1, 0], [0, 0]])[..., :size, :size]
    fine = images - 4 * convolve(spread, window, mode="mirror")
    for found, expected in zip(laplacian_pyramid(torch.from_numpy(images).float(), 2), (fine, coarse), strict=True):
        assert np.allclose(found.numpy(), expected, atol=1e-6)
