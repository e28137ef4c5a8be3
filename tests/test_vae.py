import math

import pytest
import torch
from conftest import ROOT, disc_images, small_params
from torch import nn

from facevae.config import checks
from facevae.config.params import load_params
from facevae.model import vae
from facevae.model.objective import kl_nats
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, Decoder, Encoder, Posterior, feature_shape, largest_map_bytes


@pytest.mark.parametrize(
    ("preset", "features", "latent_dim"),
    [("celeba", (256, 32, 32), 32), ("celeba-script", (256, 8, 8), 64), ("mnist", (64, 7, 7), 2)],
)
def test_presets_of_the_original_have_its_shapes(preset: str, features: tuple[int, ...], latent_dim: int) -> None:
    params = load_params(ROOT / "presets" / f"{preset}.yaml")
    size, channels = params.data.image_size, params.data.channels
    with torch.device("meta"):
        model = VAE(params.model, size, channels).eval()
        images = torch.empty(2, channels, size, size)
        last = model.encoder.blocks(images)
        posterior = model.encode(images)
        reconstruction = model.decode(posterior.mean)
    assert last.shape[1:] == features == feature_shape(params.model, size)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, latent_dim)
    assert reconstruction.shape == images.shape
    if preset == "celeba":
        assert math.prod(features) == 262_144


@pytest.mark.parametrize(("preset", "expected"), [("celeba", 128 * 128**2 * 4), ("celeba-best", 64**2 * 32 * 4)])
def test_largest_map_has_the_most_values(preset: str, expected: int) -> None:
    params = load_params(ROOT / "presets" / f"{preset}.yaml")
    assert largest_map_bytes(params.model, params.data.image_size) == expected


def test_maps_and_weights_have_the_requested_memory_format() -> None:
    params = small_params(model__normalization="batch", model__residual_blocks=1).model
    torch.manual_seed(0)
    model = VAE(params, 8, 3).eval()
    images = to_unit_range(disc_images(4), torch.device("cpu"))
    orders: list[set[bool]] = []
    expected = model.decode(model.encode(images).mean)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.set_memory_format(memory_format)
        orders.append(set())
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(
                    lambda module, inputs, output: orders[-1].update(
                        values.is_contiguous() for values in (*inputs, module.weight, output)
                    )
                )
        torch.testing.assert_close(model.decode(model.encode(images).mean), expected)
    assert orders == [{True}, {False}]


@pytest.mark.parametrize(
    ("kernel_size", "strides"),
    [
        (1, (1, 1)),
        (2, (2, 2)),
        (3, (1, 2)),
        (3, (3, 1)),
        (4, (2, 2)),
        (4, (4, 2)),
        (5, (4, 1)),
        (7, (2, 3)),
        (8, (3, 4)),
    ],
)
def test_each_convolution_divides_the_size_by_its_stride(kernel_size: int, strides: tuple[int, int]) -> None:
    sizes = {"model__kernel_size": kernel_size, "model__decoder_kernel_size": kernel_size, "data__image_size": 24}
    params = small_params(model__strides=list(strides), **sizes).model
    images = torch.rand(2, 3, 24, 24)
    model = VAE(params, 24, 3)
    assert model.encoder.blocks(images).shape[-1] == 24 // math.prod(strides)
    assert model.decode(model.encode(images).mean).shape == images.shape


def test_decoder_mirrors_the_encoder() -> None:
    params = small_params(model__normalization="batch", model__dropout=0.1, model__kernel_size=3).model
    encoder = [layer for layer in Encoder(params, 8, 3).modules() if isinstance(layer, nn.Conv2d)]
    decoder = [layer for layer in Decoder(params, 8, 3).modules() if isinstance(layer, nn.ConvTranspose2d)]
    for down, up in zip(encoder, reversed(decoder), strict=True):
        assert (down.in_channels, down.out_channels, down.stride) == (up.out_channels, up.in_channels, up.stride)
        assert (down.kernel_size, up.kernel_size) == ((3, 3), (4, 4))


@pytest.mark.parametrize("normalization", ["none", "batch", "group"])
def test_last_convolution_gives_the_logits(normalization: str) -> None:
    params = small_params(model__normalization=normalization, model__dropout=0.3).model
    model = VAE(params, 8, 3)
    decoder = model.decoder
    last = decoder.blocks[-1]
    assert isinstance(last, nn.Sequential)
    assert [type(layer) for layer in last] == [nn.ConvTranspose2d]
    latent = torch.randn(4, 3)
    logits = decoder.eval().blocks(decoder.features(latent).unflatten(1, (16, 2, 2)))
    assert (logits < 0).any()
    torch.testing.assert_close(model.decode_logits(latent), logits)
    torch.testing.assert_close(model.decode(latent), torch.sigmoid(logits))


@pytest.mark.parametrize("normalization", ["none", "batch", "group"])
def test_new_residual_blocks_are_the_identity(normalization: str) -> None:
    plain, deep = (
        small_params(model__residual_blocks=number, model__normalization=normalization).model for number in (0, 2)
    )
    model, deeper = VAE(plain, 8, 3).eval(), VAE(deep, 8, 3).eval()
    for side in ("encoder", "decoder"):
        shallow = dict(model.named_modules())[side].state_dict()
        offset = 2 if side == "decoder" else 0  # the blocks come first in the decoder, last in the encoder
        renamed = {
            ".".join([*key.split(".")[:1], str(int(key.split(".")[1]) + offset), *key.split(".")[2:]])
            if key.startswith("blocks")
            else key: value
            for key, value in shallow.items()
        }
        dict(deeper.named_modules())[side].load_state_dict(renamed, strict=False)
    images = torch.rand(3, 3, 8, 8)
    posterior, expected = deeper.encode(images), model.encode(images)
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(deeper.decode(expected.mean), model.decode(expected.mean))
    deeper.decode(posterior.mean).sum().backward()
    changed = [name for name, weight in deeper.named_parameters() if "change" in name and weight.grad is not None]
    assert any(float(dict(deeper.named_parameters())[name].grad.abs().max()) > 0 for name in changed)  # type: ignore[union-attr]


def test_checks_know_the_groups_of_group_normalisation() -> None:
    assert checks.MAX_GROUPS == vae.MAX_GROUPS  # config imports no torch, so the number is written twice


def test_dropout_is_off_in_evaluation_mode() -> None:
    model = VAE(small_params(model__dropout=0.5).model, 8, 3)
    images = torch.rand(4, 3, 8, 8)
    assert not torch.equal(model.train().encode(images).mean, model.encode(images).mean)
    assert torch.equal(model.eval().encode(images).mean, model.encode(images).mean)


def test_posterior_samples_have_its_moments() -> None:
    posterior = Posterior(torch.tensor([[1.0, -2.0]]).expand(100_000, 2), torch.tensor([[0.0, 2.0]]).expand(100_000, 2))
    sample = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.mean(0), torch.tensor([1.0, -2.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(sample.var(0), torch.tensor([1.0, math.exp(2.0)]), atol=0.1, rtol=0)


@pytest.mark.parametrize(("start", "bound"), [(25.0, 10.0), (-25.0, -20.0)])
def test_kl_leads_log_variances_back_from_outside_the_range(start: float, bound: float) -> None:
    """The KL's derivative by the log variance is (variance - 1) / 2 (arXiv 1312.6114, appendix B)."""
    encoder = Encoder(small_params().model, 8, 3)
    nn.init.zeros_(encoder.log_variance.weight)
    nn.init.constant_(encoder.log_variance.bias, start)
    kl_nats(encoder(torch.rand(4, 3, 8, 8))).mean().backward()
    torch.testing.assert_close(encoder.log_variance.bias.grad, torch.full((3,), 0.5 * (math.exp(bound) - 1)))


@pytest.mark.parametrize("learning_rate", [0.002, 0.0005])  # the demo's and the original's
def test_training_returns_from_a_large_log_variance(learning_rate: float) -> None:
    torch.manual_seed(0)
    encoder = Encoder(small_params().model, 8, 3)
    nn.init.constant_(encoder.log_variance.bias, 25.0)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
    images = torch.rand(4, 3, 8, 8)
    for _ in range(300):
        optimizer.zero_grad()
        kl_nats(encoder(images)).mean().backward()
        optimizer.step()
    assert kl_nats(encoder(images)).max().item() < 100  # 33,000 at first


def test_gradients_are_blocked_only_if_they_lead_further_outside() -> None:
    values = [25.0, -25.0, 25.0, -25.0, 9.0, -19.0]
    log_variance = torch.tensor(values, requires_grad=True)
    bounded = vae.bounded_log_variance(log_variance)
    assert bounded.tolist() == [10, -20, 10, -20, 9, -19]
    bounded.backward(torch.tensor([-1.0, 1.0, 1.0, -1.0, -1.0, 1.0]))
    assert log_variance.grad is not None
    assert log_variance.grad.tolist() == [0, 0, 1, -1, -1, 1]
