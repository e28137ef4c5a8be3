import numpy as np
import pytest
import torch
from conftest import disc_images, small_params
from sklearn.decomposition import PCA

from facevae.errors import UserError
from facevae.figures import pictures
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE
from facevae.priors.normal import StandardNormal

IMAGES = disc_images(12)


@pytest.fixture(scope="module")
def model() -> VAE:
    torch.manual_seed(0)
    return VAE(small_params(model__normalization="batch", model__dropout=0.5).model, 8, 3).eval()


def test_reconstructions_are_below_their_originals(model: VAE) -> None:
    tiles = pictures.reconstruct(model, IMAGES)
    assert np.array_equal(tiles[0], IMAGES)
    assert np.array_equal(tiles[1], decode_all(model, encode_all(model, IMAGES).mean))


def test_same_seed_gives_same_samples(model: VAE) -> None:
    prior = StandardNormal(3)
    first = pictures.sample(model, prior, 7, 4, seed=0)
    assert first.shape == (2, 4, 8, 8, 3)
    assert (first[1, 3] == 255).all()
    assert not (first[1, 2] == 255).all()
    assert np.array_equal(first, pictures.sample(model, prior, 7, 4, seed=0))
    assert not np.array_equal(first, pictures.sample(model, prior, 7, 4, seed=1))


def test_nearest_finds_the_right_image() -> None:
    near = (IMAGES[[4, 9]].astype(int) + 3).clip(0, 255).astype(np.uint8)
    assert np.array_equal(pictures.nearest(near, IMAGES, mirrored=False), IMAGES[None, [4, 9]])


def test_a_mirrored_image_is_found_if_the_training_mirrors() -> None:
    copies = IMAGES[[4, 9]][:, :, ::-1].copy()
    assert np.array_equal(pictures.nearest(copies, IMAGES, mirrored=True), copies[None])
    assert not np.array_equal(pictures.nearest(copies, IMAGES, mirrored=False), copies[None])
    assert np.array_equal(pictures.nearest(IMAGES[[4, 9]], IMAGES, mirrored=True), IMAGES[None, [4, 9]])


def test_interpolation_leads_from_one_reconstruction_to_the_other(model: VAE) -> None:
    tiles = pictures.interpolate(model, IMAGES[:2], IMAGES[2:4], 5)
    assert tiles.shape == (2, 7, 8, 8, 3)
    assert np.array_equal(tiles[:, 0], IMAGES[:2])
    assert np.array_equal(tiles[:, -1], IMAGES[2:4])
    ends = pictures.reconstruct(model, IMAGES[:4])[1].astype(int)
    assert np.abs(tiles[:, 1] - ends[:2]).max() <= 1
    assert np.abs(tiles[:, -2] - ends[2:]).max() <= 1


def test_attributes_vary_around_the_reconstruction(model: VAE) -> None:
    directions = {"A": torch.tensor([1.0, 0, 0]), "B": torch.tensor([0, 2.0, 0])}
    tiles = pictures.vary_attributes(model, IMAGES[:2], directions, ["B", "A"], [-1, 0, 1])
    assert np.array_equal(tiles[:, 0], IMAGES[:2])
    assert np.abs(tiles[:, 2].astype(int) - pictures.reconstruct(model, IMAGES[:2])[1]).max() <= 1
    moved = encode_all(model, IMAGES[:1]).mean[0] + directions["B"]
    assert np.abs(tiles[0, 3].astype(int) - decode_all(model, moved[None])[0]).max() <= 1
    with pytest.raises(UserError, match="unknown attribute 'C'"):
        pictures.vary_attributes(model, IMAGES[:1], directions, ["C"], [-1, 0, 1])


def test_principal_plane_matches_scikit_learn() -> None:
    means = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 3.0, 1.0, 2.0, 0.1])
    centre, axes = pictures.principal_plane(means)
    pca = PCA(2).fit(means.numpy())
    assert centre.numpy() == pytest.approx(pca.mean_, abs=1e-5)
    assert np.abs(np.sum(axes.numpy() * pca.components_, axis=1)) == pytest.approx([1, 1], abs=1e-4)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_principal_plane_of_two_dimensions_is_the_latent() -> None:
    centre, axes = pictures.principal_plane(torch.randn(9, 2))
    assert centre.tolist() == [0, 0]
    assert axes.tolist() == [[1, 0], [0, 1]]


def test_second_axis_of_the_manifold_points_up(model: VAE) -> None:
    axes = torch.eye(3)[:2]
    tiles = pictures.manifold(model, torch.zeros(3), axes, torch.tensor([1.0, 2.0]), 3)
    quantile = 0.9674  # of the standard normal at 5/6
    corner = decode_all(model, torch.tensor([[-quantile, 2 * quantile, 0.0]]))[0]
    assert tiles.shape == (3, 3, 8, 8, 3)
    assert np.abs(tiles[0, 0].astype(int) - corner).max() <= 1
