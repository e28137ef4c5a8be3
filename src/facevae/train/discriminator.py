"""The discriminator that sharpening plays against, and the losses of both sides."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

NEGATIVE_SLOPE = 0.2


class Verdict(NamedTuple):
    """What the discriminator says about images, one tensor for each level, finest first.

    Attributes
    ----------
    features
        The feature maps, each (batch, channel, height, width).
    logits
        One logit for each patch, each (batch, 1, height, width); high: the patch looks real.
    """

    features: list[Tensor]
    logits: list[Tensor]


class Discriminator(nn.Module):
    """Judges the patches of images at several scales (arXiv 1611.07004, section 3.2.2).

    Each level halves the feature maps. Every level gives logits: the first ones see texture, the last ones see most of
    a face. Spectral normalisation keeps all layers from growing (arXiv 1802.05957).

    Parameters
    ----------
    channels
        Of the feature maps of each level.
    image_channels
        Of the images (batch, channel, height, width) in [0, 1].
    """

    def __init__(self, channels: Sequence[int], image_channels: int) -> None:
        super().__init__()
        widths = pairwise((image_channels, *channels))
        self.levels = nn.ModuleList(spectral_norm(nn.Conv2d(*width, 4, stride=2, padding=1)) for width in widths)
        self.heads = nn.ModuleList(spectral_norm(nn.Conv2d(width, 1, 1)) for width in channels)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Verdict:
        maps = 2 * images - 1
        features, logits = [], []
        for level, head in zip(self.levels, self.heads, strict=True):
            maps = functional.leaky_relu(level(maps), NEGATIVE_SLOPE)
            features.append(maps.float())
            logits.append(head(maps).float())
        return Verdict(features, logits)


def discriminator_loss(real: Verdict, decoded: Verdict) -> Tensor:
    """The hinge loss (arXiv 1705.02894, equation 3), mean over patches, images and levels."""
    losses = [
        functional.relu(1 - yes).mean() + functional.relu(1 + no).mean()
        for yes, no in zip(real.logits, decoded.logits, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(decoded: Verdict) -> Tensor:
    """How fake decoded images look: minus the logits, mean over patches, images and levels."""
    return -torch.stack([logits.mean() for logits in decoded.logits]).mean()


def feature_loss(real: Verdict, decoded: Verdict) -> Tensor:
    """How much the feature maps of decoded images differ from those of their originals, mean over values and levels.

    The reconstruction in the discriminator's features of arXiv 1512.09300, with absolute differences. Decoded images
    beyond the originals are left out.
    """
    pairs = zip(real.features, decoded.features, strict=True)
    return torch.stack([(a.detach() - b[: len(a)]).abs().mean() for a, b in pairs]).mean()
