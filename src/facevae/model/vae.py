"""The convolutional variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114); no training code."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facevae.config.schema import ModelParams

MAX_GROUPS = 8  # of group normalisation; config.checks has the same number
LOG_VARIANCE_LIMIT = 20.0  # exp of it is still far from overflow in float32; a working posterior never comes near


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latent: `mean` and `log_variance`, each (batch, latent_dim) float32."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a latent for each image, shape (batch, latent_dim), on the generator's device."""
        return self.at(torch.randn(self.mean.shape, generator=generator, device=self.mean.device))

    def at(self, noise: Tensor) -> Tensor:
        """The latent that standard normal `noise` stands for: the reparameterisation of section 2.4."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_density(self, latent: Tensor) -> Tensor:
        """log q(latent | image) of one latent for each image, (batch, latent_dim), in nats, shape (batch,)."""
        squares = (latent - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi)).sum(1)

    def aggregate_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (latent_dim,) and covariance (latent_dim, latent_dim) of the aggregate posterior, as float64.

        The covariance is that of the means plus the mean variance (the law of total variance), so that no draw adds
        noise to it, and it has full rank however few the images.
        """
        means = self.mean.double()
        return means.mean(0), means.T.cov(correction=0) + self.log_variance.double().exp().mean(0).diag()

    def __getitem__(self, images: slice) -> "Posterior":
        """The posteriors of some of the images."""
        return Posterior(self.mean[images], self.log_variance[images])


class Residual(nn.Module):
    """Two convolutions whose result is added to what they were given, of the same shape; at first it is nothing.

    Normalisation and activation stand before each (He et al. 2016, arXiv 1603.05027, figure 1b).
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
        changed: Tensor = features + self.change(features)
        return changed


class Encoder(nn.Module):
    """Images (batch, channel, height, width) in [0, 1] to a `Posterior`."""

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        widths = (image_channels, *params.channels)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _convolution(params, in_channels, out_channels, stride),
                    *_after_convolution(params, out_channels),
                )
                for in_channels, out_channels, stride in zip(widths, widths[1:], params.strides, strict=False)
            ),
            *(Residual(params, widths[-1]) for _ in range(params.residual_blocks)),
        )
        self.memory_format = torch.channels_last
        num_features = math.prod(feature_shape(params, image_size))
        self.mean = nn.Linear(num_features, params.latent_dim)
        self.log_variance = nn.Linear(num_features, params.latent_dim)

    def forward(self, images: Tensor) -> Posterior:
        features = self.blocks(images.contiguous(memory_format=self.memory_format)).flatten(1)
        log_variance = self.log_variance(features).float()
        return Posterior(self.mean(features).float(), log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT))


class Decoder(nn.Module):
    """Latents (batch, latent_dim) to images (batch, channel, height, width) in [0, 1].

    After as many residual blocks as the encoder ends with, each transposed convolution undoes one convolution of the
    encoder, last to first. Nothing stands between the last one and the sigmoid.
    """

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        self._feature_shape = feature_shape(params, image_size)
        self.features = nn.Linear(params.latent_dim, math.prod(self._feature_shape))
        widths = (image_channels, *params.channels)
        blocks: list[nn.Module] = [Residual(params, widths[-1]) for _ in range(params.residual_blocks)]
        for layer in reversed(range(len(params.strides))):
            is_last = layer == 0
            bias = is_last or _has_bias(params)
            up = _transposed(params, widths[layer + 1], widths[layer], params.strides[layer], bias=bias)
            blocks.append(nn.Sequential(up, *([] if is_last else _after_convolution(params, widths[layer]))))
        self.blocks = nn.Sequential(*blocks)
        self.memory_format = torch.channels_last

    def forward(self, latent: Tensor) -> Tensor:
        features = self.features(latent).unflatten(1, self._feature_shape)
        logits: Tensor = self.blocks(features.contiguous(memory_format=self.memory_format))
        return torch.sigmoid(logits.float())


class VAE(nn.Module):
    """Encoder, decoder, and the scale of the Gaussian likelihood.

    Parameters
    ----------
    params
        The convolutions and the latent.
    image_size
        Height and width of the images in pixels.
    image_channels
        3 for RGB, 1 for grey.
    """

    def __init__(self, params: ModelParams, image_size: int, image_channels: int) -> None:
        super().__init__()
        self.params = params
        self.image_size = image_size
        self.image_channels = image_channels
        self.encoder = Encoder(params, image_size, image_channels)
        self.decoder = Decoder(params, image_size, image_channels)
        self.log_sigma = nn.Parameter(torch.tensor(0.5 * math.log(0.5)))  # variance 1/2: that of squared_error
        self.set_memory_format(torch.channels_last)

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Have all convolutions keep maps and weights in this order; what they compute changes by rounding only."""
        self.encoder.memory_format = self.decoder.memory_format = memory_format
        self.to(memory_format=memory_format)

    def encode(self, images: Tensor) -> Posterior:
        """Approximate posterior of images (batch, channel, height, width)."""
        posterior: Posterior = self.encoder(images)
        return posterior

    def decode(self, latent: Tensor) -> Tensor:
        """Reconstruction (batch, channel, height, width) of latents (batch, latent_dim)."""
        reconstruction: Tensor = self.decoder(latent)
        return reconstruction


def new_model(params: ModelParams, image_size: int, image_channels: int, *, seed: int) -> VAE:
    """A VAE with the initial weights that `seed` determines."""
    torch.manual_seed(seed)
    return VAE(params, image_size, image_channels)


def feature_shape(params: ModelParams, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of the encoder's last feature map."""
    size = image_size // math.prod(params.strides)
    return params.channels[-1], size, size


def largest_map_bytes(params: ModelParams, image_size: int) -> int:
    """Bytes of the largest feature map of one image, in float32."""
    size, largest = image_size, 0
    for channels, stride in zip(params.channels, params.strides, strict=True):
        size //= stride
        largest = max(largest, 4 * channels * size**2)
    return largest


def _padding(kernel_size: int, stride: int) -> int:
    """The padding with which a convolution divides the size by exactly its stride."""
    return math.ceil((kernel_size - stride) / 2)


def _convolution(params: ModelParams, in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """The convolution that divides the size by exactly its stride."""
    padding = _padding(params.kernel_size, stride)
    return nn.Conv2d(in_channels, out_channels, params.kernel_size, stride, padding, bias=_has_bias(params))


def _transposed(
    params: ModelParams, in_channels: int, out_channels: int, stride: int, *, bias: bool
) -> nn.ConvTranspose2d:
    """The transposed convolution that multiplies the size by exactly its stride."""
    kernel_size = params.decoder_kernel_size
    padding = _padding(kernel_size, stride)
    size = kernel_size, stride, padding, stride + 2 * padding - kernel_size
    return nn.ConvTranspose2d(in_channels, out_channels, *size, bias=bias)


def _has_bias(params: ModelParams) -> bool:
    """Whether convolutions have one: batch normalisation takes it away again, and it would drift by rounding alone."""
    return params.normalization != "batch"


def _after_convolution(params: ModelParams, channels: int) -> list[nn.Module]:
    """Normalisation, activation and dropout, as far as they are asked for."""
    layers: list[nn.Module] = []
    if params.normalization == "batch":
        layers.append(nn.BatchNorm2d(channels))
    if params.normalization == "group":
        layers.append(nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels))
    layers.append(nn.LeakyReLU(params.negative_slope))
    if params.dropout > 0:
        layers.append(nn.Dropout(params.dropout))
    return layers
