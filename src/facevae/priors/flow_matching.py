"""Flow matching: a learned velocity carries noise to latents, along paths that are straight on average.

Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003; in the latent of a VAE: Vahdat et al. 2021,
arXiv 2106.05931. Time runs from 0, noise, to 1, data. The coordinates are those in which the aggregate posterior has
mean 0 and covariance I.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.errors import UserError
from facevae.priors.normal import standard_normal_log_prob, whiten
from facevae.priors.velocity import Velocity

NUM_STEPS = 25  # of Heun's method, from noise to a latent
NUM_DENSITY_STEPS = 10  # of the classical Runge-Kutta method, from a latent to noise; mean error 0.01 nats
BATCH_SIZE = 2000  # latents whose density is computed at a time
GUIDANCE = 3.25  # of attributes that are asked for


@dataclass(frozen=True)
class FlowMatching:
    """A velocity field that carries N(0, I) to the aggregate posterior.

    `mean` (latent_dim,) and `factor` (latent_dim, latent_dim), the lower Cholesky factor of the covariance, are those
    of the aggregate posterior, float64. `attributes` are the names of the velocity's labels, and `examples`
    (num_examples, num_attributes) int8 the labels of training images.
    """

    velocity: Velocity
    mean: Tensor
    factor: Tensor
    attributes: tuple[str, ...]
    examples: Tensor

    @property
    def latent_dim(self) -> int:
        """Number of dimensions of the latent."""
        return len(self.mean)

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """Draw latents (num_samples, latent_dim), each with the labels of a random training image.

        Samples with labels are better than samples without: a flow under labels has less to learn. The temperature
        scales the noise.
        """
        noise = temperature * torch.randn(num_samples, self.latent_dim, generator=generator)
        examples = torch.randint(len(self.examples), (num_samples,), generator=generator)
        return Conditional(self, self.examples[examples].float(), guidance=1.0).from_noise(noise)

    def given(self, present: Sequence[str] = (), absent: Sequence[str] = ()) -> "Conditional":
        """The distribution of latents of images that have the attributes `present` and lack those `absent`.

        Raises
        ------
        UserError
            An attribute is unknown, or both present and absent.
        """
        labels = torch.zeros(1, len(self.attributes))
        for label, names in ((1.0, present), (-1.0, absent)):
            for name in names:
                if name not in self.attributes:
                    known = ", ".join(sorted(self.attributes)) or "none, since the set has no attributes"
                    raise UserError(f"unknown attribute {name!r}. Known attributes: {known}")
                index = self.attributes.index(name)
                if labels[0, index] == -label:
                    raise UserError(f"{name} is both present and absent")
                labels[0, index] = label
        return Conditional(self, labels, GUIDANCE)

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) without labels, in nats, shape (batch,).

        The velocity's divergence is integrated on the way to the noise (arXiv 1806.07366, equation 8), in each step by
        Simpson's rule. The divergence is exact, not estimated from random directions; only the integral has an error.
        """
        return torch.cat([self._log_prob(batch) for batch in latent.split(BATCH_SIZE)])

    @torch.no_grad()
    def _log_prob(self, latent: Tensor) -> Tensor:
        point = whiten(latent, self.mean, self.factor).float()
        log_determinant = -self.factor.diagonal().log().sum().float().expand(len(latent))
        labels, times = torch.zeros(1, len(self.attributes)), _times(NUM_DENSITY_STEPS).flip(0)
        first, divergence = self.velocity.with_divergence(point, times[0], labels)
        for end, start in itertools.pairwise(times):
            step, middle = start - end, (start + end) / 2
            second = self.velocity(point + step / 2 * first, middle, labels)
            third = self.velocity(point + step / 2 * second, middle, labels)
            fourth = self.velocity(point + step * third, start, labels)
            ahead = point + step / 6 * (first + 2 * (second + third) + fourth)
            velocity_ahead, divergence_ahead = self.velocity.with_divergence(ahead, start, labels)
            between = (point + ahead) / 2 + step / 8 * (first - velocity_ahead)  # cubic Hermite interpolation
            _, divergence_between = self.velocity.with_divergence(between, middle, labels)
            mean_divergence = (divergence + 4 * divergence_between + divergence_ahead) / 6
            log_determinant = log_determinant + step[0, 0] * mean_divergence
            point, first, divergence = ahead, velocity_ahead, divergence_ahead
        return standard_normal_log_prob(point) + log_determinant


@dataclass(frozen=True)
class Conditional:
    """Flow matching under labels (1 or batch, num_attributes): 1: present, -1: absent, 0: nothing is said.

    `guidance` is how far labels move the velocity: 1 as far as was learned, more makes attributes surer.
    """

    flow: FlowMatching
    labels: Tensor
    guidance: float

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """Draw latents (num_samples, latent_dim). The same generator gives all labels the same noise."""
        return self.from_noise(temperature * torch.randn(num_samples, self.flow.latent_dim, generator=generator))

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """The latents that noise turns into, both (batch, latent_dim)."""
        point = noise
        for start, end in itertools.pairwise(_times(NUM_STEPS)):
            velocity = self._velocity(point, start)
            ahead = self._velocity(point + (end - start) * velocity, end)
            point = point + (end - start) / 2 * (velocity + ahead)
        return (self.flow.mean + point.double() @ self.flow.factor.T).float()

    def _velocity(self, point: Tensor, time: Tensor) -> Tensor:
        """The velocity under the labels, moved away from the one without labels (arXiv 2207.12598)."""
        time = time.expand(len(self.labels), 1)
        labelled: Tensor = self.flow.velocity(point, time, self.labels)
        if self.guidance == 1 or not self.labels.any():
            return labelled
        return torch.lerp(self.flow.velocity(point, time, torch.zeros_like(self.labels)), labelled, self.guidance)


def _times(num_steps: int) -> Tensor:
    """Times from 0 to 1, each (1, 1)."""
    return torch.linspace(0, 1, num_steps + 1)[:, None, None]
