import math
from itertools import pairwise

import torch
from conftest import disc_images, small_params
from torch import Tensor, nn

from facevae.model.inference import encode_all
from facevae.model.objective import squared_error
from facevae.model.pixels import to_unit_range
from facevae.model.refinement import refined
from facevae.model.vae import VAE, Posterior

SIGMA = 0.1
SIZE = 6  # pixels, height = width
LATENT = 3
IMAGES = disc_images(12)


class LinearDecoder(nn.Module):
    """x = W z + 1/2 + noise, whose posterior is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(SIZE**2, LATENT, generator=torch.Generator().manual_seed(0)))
        self.log_sigma = nn.Parameter(torch.tensor(math.log(SIGMA)))

    def decode(self, latent: Tensor) -> Tensor:
        return (latent @ self.weight.T + 0.5).view(-1, 1, SIZE, SIZE)


def test_linear_decoder_gets_its_exact_posterior_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    model = LinearDecoder()
    images = torch.rand(5, 1, SIZE, SIZE, generator=generator)
    precision = torch.eye(LATENT) + model.weight.T @ model.weight / SIGMA**2
    exact = torch.linalg.solve(precision, model.weight.T @ (images.flatten(1) - 0.5).T / SIGMA**2).T
    guess = Posterior(torch.randn(5, LATENT, generator=generator), torch.randn(5, LATENT, generator=generator))
    found = refined(model, images, guess, LATENT)  # type: ignore[arg-type]
    torch.testing.assert_close(found.mean, exact, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(refined(model, images, guess, LATENT - 1).mean, exact, atol=0.01)  # type: ignore[arg-type]
    assert torch.equal(found.log_variance, guess.log_variance)


def test_each_step_makes_latents_more_probable() -> None:
    images = to_unit_range(IMAGES, torch.device("cpu"))
    energies = []
    for num_steps in range(3):
        torch.manual_seed(0)
        params = small_params(model__normalization="batch", model__dropout=0.5, model__refinement_steps=num_steps).model
        model = VAE(params, 8, 3).eval()
        mean = encode_all(model, IMAGES, batch_size=5).mean
        energies.append(squared_error(model.decode(mean), images) + 0.5 * mean.square().sum(1))  # sigma^2 is 1/2
        assert not mean.requires_grad
        assert all(weight.grad is None for weight in model.parameters())
        if not num_steps:
            torch.testing.assert_close(mean, model.encode(images).mean, atol=1e-5, rtol=1e-4)
    assert all((after < before).all() for before, after in pairwise(energies))


def test_latents_that_need_no_refinement_stay() -> None:
    model = LinearDecoder()
    images = model.decode(torch.zeros(2, LATENT)).detach()
    best = Posterior(torch.zeros(2, LATENT), torch.zeros(2, LATENT))
    assert torch.equal(refined(model, images, best, 3).mean, best.mean)  # type: ignore[arg-type]


class CurvedDecoder(LinearDecoder):
    """The pixels turn with the square of the latent, so a step that suits a straight decoder goes too far."""

    def decode(self, latent: Tensor) -> Tensor:
        return super().decode(torch.sin(3 * latent.square()))


def test_no_image_gets_a_less_probable_latent() -> None:
    model = CurvedDecoder()
    images = torch.rand(40, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    start = torch.randn(40, LATENT, generator=torch.Generator().manual_seed(3))
    guess = Posterior(start, torch.full((40, LATENT), -3.0))

    def energy(latent: Tensor) -> Tensor:
        return (0.5 * (squared_error(model.decode(latent), images) / SIGMA**2 + latent.square().sum(1))).detach()

    energies = [energy(refined(model, images, guess, num_steps).mean) for num_steps in (1, 2, 5)]  # type: ignore[arg-type]
    for before, after in pairwise([energy(start), *energies]):
        assert (after <= before).all()
    assert (energies[-1] == energy(start)).any(), "no step led uphill: the decoder is not curved enough for this test"
    assert (energies[-1] < energy(start)).any()


def test_refinement_works_in_inference_mode() -> None:
    model, images = LinearDecoder(), torch.rand(5, 1, SIZE, SIZE)
    zero = torch.zeros(5, LATENT)
    expected = refined(model, images, Posterior(zero, zero), 2)  # type: ignore[arg-type]
    with torch.inference_mode():
        found = refined(model, images.clone(), Posterior(zero.clone(), zero.clone()), 2)  # type: ignore[arg-type]
    torch.testing.assert_close(found.mean, expected.mean)
