"""Turn the VAE into the list of operations that the page's engine runs, with its weights in float16."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facevae.model.vae import VAE, Residual, feature_shape

BLOCK = 8  # channels are padded to a multiple of it; engine.js has the same number

Operation = dict[str, Any]  # what engine.js reads: a type, numbers, and references to tensors
Reference = dict[str, str | int]


@dataclass
class TensorFile:
    """Arrays in one block of bytes, each known by its type, offset and length."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes

    def add(self, array: NDArray[np.float16] | NDArray[np.float32]) -> Reference:
        """Append an array; return where it lies."""
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        reference: Reference = {"type": str(array.dtype), "offset": self.size, "length": array.size}
        self.parts.append(content + bytes(-len(content) % 4))  # JavaScript wants float32 aligned
        self.size += len(self.parts[-1])
        return reference


@dataclass
class Convolution:
    """A convolution of either kind, or a linear layer, with what follows it folded in."""

    weights: Tensor  # (kernel height, kernel width, input channel, output channel) float64
    bias: Tensor  # (output channel,) float64
    stride: int
    padding: int
    transposed: bool
    slope: float = 1.0  # of the leaky rectifier after it; 1: none

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Let the outputs be scaled and shifted, channel by channel."""
        self.weights = self.weights * scale
        self.bias = self.bias * scale + shift

    def operation(self, tensors: TensorFile) -> Operation:
        """Write the weights; each output channel has a scale of its own, so that float16 suits all magnitudes."""
        kernel, _, inputs, outputs = self.weights.shape
        padded = torch.zeros(kernel, kernel, inputs + -inputs % BLOCK, outputs + -outputs % BLOCK, dtype=torch.float64)
        padded[:, :, :inputs, :outputs] = self.weights
        scale = padded.abs().amax((0, 1, 2))
        scale = torch.where(scale > 0, scale, 1.0)
        return {
            "type": "convolution",
            "transposed": self.transposed,
            "kernel": kernel,
            "stride": self.stride,
            "padding": self.padding,
            "slope": self.slope,
            "weights": tensors.add((padded / scale).numpy().astype(np.float16)),
            "scale": tensors.add(_channels(scale)),
            "bias": tensors.add(_channels(self.bias)),
        }


@dataclass
class Normalization:
    """Normalisation that cannot be folded: by group, or before the first convolution of a residual block."""

    scale: Tensor  # (channel,) float64
    shift: Tensor
    groups: int = 0  # 0: only scale and shift
    epsilon: float = 0.0
    slope: float = 1.0

    def operation(self, tensors: TensorFile) -> Operation:
        """Write scale and shift."""
        own = {"scale": tensors.add(_channels(self.scale)), "shift": tensors.add(_channels(self.shift))}
        if not self.groups:
            return {"type": "affine", "slope": self.slope, **own}
        sizes = {"groups": self.groups, "channels": len(self.scale), "epsilon": self.epsilon}
        return {"type": "groupNormalization", "slope": self.slope, **sizes, **own}


@torch.no_grad()
def decoder_operations(model: VAE, tensors: TensorFile) -> list[Operation]:
    """From latents with a 1 appended, as a map of one pixel, to logits (height, width, channel)."""
    linear = model.decoder.features
    channels, size, _ = shape = feature_shape(model.params, model.image_size)
    rows = torch.cat([linear.weight, linear.bias[:, None]], dim=1).double()  # (feature, latent_dim + 1)
    weights = rows.unflatten(0, shape).permute(1, 2, 3, 0)  # (height, width, latent_dim + 1, channel)
    first = Convolution(weights, torch.zeros(channels, dtype=torch.float64), size, 0, transposed=True)
    return [first.operation(tensors), *_operations(model.decoder.blocks, channels, tensors)]


@torch.no_grad()
def encoder_operations(model: VAE, tensors: TensorFile) -> list[Operation]:
    """From images (height, width, channel) in [0, 1] to means of their latents, as a map of one pixel."""
    linear = model.encoder.mean
    channels, size, _ = shape = feature_shape(model.params, model.image_size)
    weights = linear.weight.double().unflatten(1, shape).permute(2, 3, 1, 0)  # (height, width, channel, latent_dim)
    last = Convolution(weights, linear.bias.double(), size, 0, transposed=False)
    return [*_operations(model.encoder.blocks, channels, tensors), last.operation(tensors)]


def _operations(blocks: Iterable[nn.Module], width: int, tensors: TensorFile) -> list[Operation]:
    """The operations of an encoder's or decoder's blocks; `width` is the number of channels in residual blocks."""
    operations: list[Operation] = []
    for block in blocks:
        if isinstance(block, Residual):
            change = [part.operation(tensors) for part in _parts(block.change, width)]
            operations.append({"type": "residual", "change": change})
        else:
            operations += [part.operation(tensors) for part in _parts(block.children(), width)]
    return operations


def _parts(layers: Iterable[nn.Module], width: int) -> list[Convolution | Normalization]:
    """Fold normalisation and activation into the convolutions before them, if there are any."""
    parts: list[Convolution | Normalization] = []
    for layer in layers:
        match layer:
            case nn.Conv2d() | nn.ConvTranspose2d():
                parts.append(_convolution(layer))
            case nn.BatchNorm2d():
                assert layer.running_mean is not None  # the model tracks both
                assert layer.running_var is not None
                scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
                shift = layer.bias.double() - layer.running_mean.double() * scale
                if parts and isinstance(parts[-1], Convolution):
                    parts[-1].fold(scale, shift)
                else:
                    parts.append(Normalization(scale, shift))
            case nn.GroupNorm():
                scale, shift = layer.weight.double(), layer.bias.double()
                parts.append(Normalization(scale, shift, layer.num_groups, layer.eps))
            case nn.LeakyReLU():
                if not parts:  # a residual block without normalisation
                    ones = torch.ones(width, dtype=torch.float64)
                    parts.append(Normalization(ones, 0 * ones))
                parts[-1].slope = layer.negative_slope
            case nn.Dropout():
                pass  # does nothing after training
            case _:
                raise TypeError(f"engine.js knows no {type(layer).__name__}")
    return parts


def _convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> Convolution:
    transposed = isinstance(layer, nn.ConvTranspose2d)
    order = (2, 3, 0, 1) if transposed else (2, 3, 1, 0)  # to kernel height, kernel width, input, output
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    stride, padding = int(layer.stride[0]), int(layer.padding[0])  # the same in both directions
    return Convolution(layer.weight.double().permute(order), bias.double(), stride, padding, transposed)


def _channels(values: Tensor) -> NDArray[np.float32]:
    """One value a channel, padded with zeros to whole blocks."""
    padded: NDArray[np.float32] = np.zeros(len(values) + -len(values) % BLOCK, np.float32)
    padded[: len(values)] = values.numpy()
    return padded
