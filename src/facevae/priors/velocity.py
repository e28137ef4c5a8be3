"""The network of the flow matching prior: the velocity of a latent on its way from noise, and its divergence."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 384
CONDITION_WIDTH = 64
NUM_FREQUENCIES = 16
EPSILON = 1e-5  # of the layer normalisations


class Velocity(nn.Module):
    """Velocities (batch, latent_dim) of latents (batch, latent_dim) at times from 0, noise, to 1, data.

    Two hidden layers, each normalised (arXiv 1607.06450), then scaled and shifted by functions of time and labels. Two
    are what an exact divergence at the cost of another forward pass allows; a third would multiply that cost by the
    width. A new network's velocity is 0.

    Times (batch, 1) and labels (batch, num_attributes) may have a batch of 1, for all latents. A label is 1 for an
    attribute that is present, -1 for one that is absent, and 0 where nothing is said.
    """

    def __init__(self, latent_dim: int, num_attributes: int) -> None:
        super().__init__()
        self.condition = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES + 2 * num_attributes, CONDITION_WIDTH),
            nn.SiLU(),
            nn.Linear(CONDITION_WIDTH, CONDITION_WIDTH),
            nn.SiLU(),
        )
        self.first_modulation = nn.Linear(CONDITION_WIDTH, 2 * WIDTH)
        self.second_modulation = nn.Linear(CONDITION_WIDTH, 2 * WIDTH)
        self.scale = nn.Linear(CONDITION_WIDTH, latent_dim)  # of the latent itself
        self.first = nn.Linear(latent_dim, WIDTH)  # the bias lets the norm of a latent matter
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.first_output = nn.Linear(WIDTH, latent_dim, bias=False)
        self.second_output = nn.Linear(WIDTH, latent_dim)
        for layer in (self.scale, self.first_output, self.second_output):
            nn.init.zeros_(layer.weight)
        for layer in (self.scale, self.second_output):
            nn.init.zeros_(layer.bias)

    def forward(self, latent: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        scale, first_modulation, second_modulation = self._modulations(time, labels)
        first = functional.silu(_modulated(_normalized(self.first(latent))[0], first_modulation))
        second = functional.silu(_modulated(_normalized(self.second(first))[0], second_modulation))
        velocity: Tensor = self.first_output(first) + self.second_output(second) + scale * latent
        return velocity

    @torch.no_grad()
    def with_divergence(self, latent: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The velocities, and their divergences (batch,): the traces of the Jacobian by the latent, exact.

        With weights W1, W2 and outputs U1, U2, the Jacobian is U1 J1 + U2 J2 J1 + diag(scale), where each
        J = diag(slope) (I - n n^T / width) C W; n are the normalised features and C takes the mean from each column. So
        a trace is a bilinear form in the slopes, minus terms of rank one. C W1 U2 is never multiplied out but for the
        bilinear form: its rank is that of the latent, which is much less than the width.
        """
        scale, first_modulation, second_modulation = self._modulations(time, labels)
        normal_1, factor_1 = _normalized(self.first(latent))  # (batch, width), (batch, 1)
        first, slope_1 = _silu_and_slope(_modulated(normal_1, first_modulation))
        slope_1 = slope_1 * (1 + first_modulation[0]) * factor_1
        normal_2, factor_2 = _normalized(self.second(first))
        second, slope_2 = _silu_and_slope(_modulated(normal_2, second_modulation))
        slope_2 = slope_2 * (1 + second_modulation[0]) * factor_2
        velocity = self.first_output(first) + self.second_output(second) + scale * latent

        into, between = (layer.weight - layer.weight.mean(0) for layer in (self.first, self.second))
        own_out, out = self.first_output.weight, self.second_output.weight  # (latent_dim, width)
        pull_1, pull_2 = normal_1 * slope_1, normal_2 * slope_2
        inward_1 = normal_1 @ into  # (batch, latent_dim)
        onward_1, onward_2 = inward_1 @ out, normal_2 @ between
        own_trace = slope_1 @ (into * own_out.T).sum(1) - ((inward_1 @ own_out) * pull_1).sum(1) / WIDTH
        both_trace = (
            (slope_2 @ (between * (into @ out).T) * slope_1).sum(1)
            - (onward_2 * slope_1 * (pull_2 @ out.T @ into.T)).sum(1) / WIDTH
            - (onward_1 * slope_2 * (pull_1 @ between.T)).sum(1) / WIDTH
            + (onward_1 * pull_2).sum(1) * (onward_2 * pull_1).sum(1) / WIDTH**2
        )
        return velocity, own_trace + both_trace + scale.sum(1)

    def _modulations(self, time: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The latent's scale, and scale and shift of each hidden layer."""
        condition = self.condition(torch.cat([_waves(time), labels.relu(), (-labels).relu()], 1))
        first_scale, first_shift = self.first_modulation(condition).chunk(2, 1)
        second_scale, second_shift = self.second_modulation(condition).chunk(2, 1)
        return self.scale(condition), (first_scale, first_shift), (second_scale, second_shift)


def _normalized(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (batch, width) with mean 0 and variance 1, and what they were multiplied by, (batch, 1)."""
    normal, _, factor = torch.native_layer_norm(features, features.shape[1:], None, None, EPSILON)
    return normal, factor


def _modulated(features: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
    scale, shift = modulation
    return torch.addcmul(shift, features, 1 + scale)


def _silu_and_slope(features: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(features)
    return features * gate, gate * (1 + features * (1 - gate))


def _waves(time: Tensor) -> Tensor:
    """Sines and cosines of times (batch, 1), with periods from 1/16 to 4 in geometric steps."""
    frequencies = 2 * math.pi * torch.logspace(-2, 4, NUM_FREQUENCIES, base=2.0, dtype=time.dtype)
    return torch.cat([torch.sin(time * frequencies), torch.cos(time * frequencies)], 1)
