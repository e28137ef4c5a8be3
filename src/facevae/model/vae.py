"""The convolutional variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114); no training code."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facevae.config.schema import ModelParams

MAX_GROUPS = 8  # groups of a group normalisation; config.checks has the same number
LOG_VARIANCE_RANGE = (-20.0, 10.0)  # beyond any working posterior; above 10 the KL's gradients would cripple Adam


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latent: `mean` and `log_variance`, each (batch, latent_dim) float32."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one latent per image, (batch, latent_dim), on the generator's device."""
        return self.at(torch.randn(self.mean.shape, generator=generator, device=self.mean.device))

    def at(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise into latents, both (batch, latent_dim): the reparameterisation of section 2.4."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_density(self, latent: Tensor) -> Tensor:
        """log q(latent | image) in nats, shape (batch,), for one latent per image, (batch, latent_dim)."""
        squares = (latent - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi)).sum(1)

    def aggregate_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (latent_dim,) and covariance (latent_dim, latent_dim) of the aggregate posterior, as float64.

        The covariance is that of the means plus the mean variance (the law of total variance). No draw adds noise to
        it, and it has full rank even for a single image.
        """
        means = self.mean.double()
        return means.mean(0), means.T.cov(correction=0) + self.log_variance.double().exp().mean(0).diag()

    def __getitem__(self, images: slice) -> "Posterior":
        """The posteriors of a slice of the images."""
        return Posterior(self.mean[images], self.log_variance[images])


class Residual(nn.Module):
    """Add the output of two convolutions, each after normalisation and activation, to the input.

    He et al. 2016, arXiv 1603.05027, figure 1b. The last weights start at zero, so a new block is the identity.
    """

    def __init__(self, params: ModelParams, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        nn.init.zeros_(last.weight)
        self.change = nn.Sequential(
            *_after_convolution(params, channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=_has_bias(params)),
            *_after_convolution(params, channels),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.add(features, self.change(features))  # (batch, channel, height, width)


class Encoder(nn.Module):
    """Images (batch, channel, height, width) in [0, 1] to a `Posterior`."""

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        widths = (image_channels, *params.channels)
        self.blocks = nn.Sequential(
            *(_down(params, *shape) for shape in zip(widths, params.channels, params.strides, strict=False)),
            *(Residual(params, widths[-1]) for _ in range(params.residual_blocks)),
        )
        self.memory_format = torch.channels_last
        num_features = math.prod(feature_shape(params, image_size))
        self.mean = nn.Linear(num_features, params.latent_dim)
        self.log_variance = nn.Linear(num_features, params.latent_dim)

    def forward(self, images: Tensor) -> Posterior:
        maps = self.blocks(images.contiguous(memory_format=self.memory_format))  # (batch, *feature_shape)
        features = maps.flatten(1)  # (batch, num_features)
        log_variance = self.log_variance(features).float()
        return Posterior(self.mean(features).float(), bounded_log_variance(log_variance))


class Decoder(nn.Module):
    """Latents (batch, latent_dim) to logits of images (batch, channel, height, width).

    It mirrors the encoder, last layer first. The last transposed convolution gives the logits.
    """

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        self._feature_shape = feature_shape(params, image_size)
        self.features = nn.Linear(params.latent_dim, math.prod(self._feature_shape))
        widths = (image_channels, *params.channels)
        layers = reversed(range(len(params.strides)))
        self.blocks = nn.Sequential(
            *(Residual(params, widths[-1]) for _ in range(params.residual_blocks)),
            *(_up(params, widths[i + 1], widths[i], params.strides[i], is_last=i == 0) for i in layers),
        )
        self.memory_format = torch.channels_last

    def forward(self, latent: Tensor) -> Tensor:
        maps = self.features(latent).unflatten(1, self._feature_shape)  # (batch, *feature_shape)
        logits: Tensor = self.blocks(maps.contiguous(memory_format=self.memory_format))
        return logits.float()


class VAE(nn.Module):
    """Encoder, decoder, and the scale of the Gaussian likelihood."""

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        self.params = params
        self.image_size = image_size  # pixels, height = width
        self.image_channels = image_channels  # 3: RGB, 1: grey
        self.encoder = Encoder(params, image_size, image_channels)
        self.decoder = Decoder(params, image_size, image_channels)
        self.log_sigma = nn.Parameter(torch.tensor(0.5 * math.log(0.5)))  # variance 1/2, as `squared_error` implies
        self.set_memory_format(torch.channels_last)

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Set the memory order of all feature maps and weights; results change by rounding only."""
        self.encoder.memory_format = self.decoder.memory_format = memory_format
        self.to(memory_format=memory_format)

    def encode(self, images: Tensor) -> Posterior:
        """Approximate posterior of images (batch, channel, height, width) in [0, 1]."""
        posterior: Posterior = self.encoder(images)
        return posterior

    def decode(self, latent: Tensor) -> Tensor:
        """Reconstruction (batch, channel, height, width) in [0, 1] of latents (batch, latent_dim)."""
        return torch.sigmoid(self.decode_logits(latent))

    def decode_logits(self, latent: Tensor) -> Tensor:
        """The reconstruction before its sigmoid, of the same shape."""
        logits: Tensor = self.decoder(latent)
        return logits


class _Bounded(torch.autograd.Function):
    """A clamp to `LOG_VARIANCE_RANGE` that blocks a gradient only if its step would lead further outside."""

    @staticmethod
    def forward(context: Any, log_variance: Tensor) -> Tensor:
        context.save_for_backward(log_variance)
        return log_variance.clamp(*LOG_VARIANCE_RANGE)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (log_variance,), (gradient,) = context.saved_tensors, gradients
        lowest, highest = LOG_VARIANCE_RANGE  # a step goes against the gradient
        leads_outside = (log_variance > highest) & (gradient < 0) | (log_variance < lowest) & (gradient > 0)
        return torch.where(leads_outside, 0.0, gradient)


def bounded_log_variance(log_variance: Tensor) -> Tensor:
    """Clamp log variances to `LOG_VARIANCE_RANGE`, so that gradients from beyond it still lead back.

    A plain clamp has no gradient there: a posterior that leaves the range in the first steps would never return.
    """
    bounded: Tensor = _Bounded.apply(log_variance)
    return bounded


def new_model(params: ModelParams, image_size: int, image_channels: int, *, seed: int) -> VAE:
    """A VAE whose initial weights depend on `seed` alone."""
    torch.manual_seed(seed)
    return VAE(params, image_size, image_channels)


def feature_shape(params: ModelParams, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of the encoder's last feature map."""
    size = image_size // math.prod(params.strides)
    return params.channels[-1], size, size


def largest_map_bytes(params: ModelParams, image_size: int) -> int:
    """Bytes of the largest feature map of one image, in float32."""
    sizes = [image_size // math.prod(params.strides[: i + 1]) for i in range(len(params.strides))]
    return max(4 * channels * size**2 for channels, size in zip(params.channels, sizes, strict=True))


def _down(params: ModelParams, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A convolution that divides the size by exactly its stride, then normalisation, activation and dropout."""
    padding = _padding(params.kernel_size, stride)
    layer = nn.Conv2d(in_channels, out_channels, params.kernel_size, stride, padding, bias=_has_bias(params))
    return nn.Sequential(layer, *_after_convolution(params, out_channels))


def _up(params: ModelParams, in_channels: int, out_channels: int, stride: int, *, is_last: bool) -> nn.Sequential:
    """A transposed convolution that multiplies the size by exactly its stride; unless it is last, the same follows."""
    kernel_size = params.decoder_kernel_size
    padding = _padding(kernel_size, stride)
    sizes = kernel_size, stride, padding, stride + 2 * padding - kernel_size  # the last is the output padding
    layer = nn.ConvTranspose2d(in_channels, out_channels, *sizes, bias=is_last or _has_bias(params))
    return nn.Sequential(layer, *([] if is_last else _after_convolution(params, out_channels)))


def _padding(kernel_size: int, stride: int) -> int:
    return math.ceil((kernel_size - stride) / 2)


def _has_bias(params: ModelParams) -> bool:
    """Batch normalisation makes a convolution's bias redundant."""
    return params.normalization != "batch"


def _after_convolution(params: ModelParams, channels: int) -> list[nn.Module]:
    """Normalisation, activation and dropout, each if the params ask for it."""
    layers: list[nn.Module] = []
    if params.normalization == "batch":
        layers.append(nn.BatchNorm2d(channels))
    if params.normalization == "group":
        layers.append(nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels))
    layers.append(nn.LeakyReLU(params.negative_slope))
    if params.dropout > 0:
        layers.append(nn.Dropout(params.dropout))
    return layers
