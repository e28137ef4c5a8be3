"""A normalizing flow over the latent: the aggregate posterior's Gaussian, bent by affine couplings."""

import copy
import math

import torch
from torch import Tensor, nn

from facevae.model.vae import Posterior
from facevae.priors.normal import aggregate_gaussian, standard_normal_log_prob, whiten
from facevae.train.optimizers import Adam

NUM_COUPLINGS = 6
WIDTH = 128
DROPOUT = 0.2
LOG_SCALE_LIMIT = 1.0  # of one coupling: half of them move a dimension, which none stretches beyond e^3

NUM_STEPS = 1000
BATCH_SIZE = 256
LEARNING_RATE = 0.006
WEIGHT_DECAY = 0.5  # fifty times the usual: a flow soon learns a few thousand images by heart
PATIENCE = 20  # epochs


class Coupling(nn.Module):
    """Scale and shift some dimensions by functions of the others (Dinh et al. 2017, arXiv 1605.08803, equation 9).

    `held` (latent_dim,) is 1 for the dimensions that stay as they are, else 0.
    """

    held: Tensor

    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", held)
        self.hidden = nn.Sequential(
            nn.Linear(len(held), WIDTH),
            nn.SiLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Dropout(DROPOUT),
        )
        self.output = nn.Linear(WIDTH, 2 * len(held))
        nn.init.zeros_(self.output.weight)  # so that it begins as the identity
        nn.init.zeros_(self.output.bias)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (batch, latent_dim) one step nearer to noise, and the log determinant of the step, (batch,)."""
        log_scale, shift = self._log_scale_and_shift(latent)
        return latent * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, noise: Tensor) -> Tensor:
        """The latents (batch, latent_dim) of which `forward` makes this."""
        log_scale, shift = self._log_scale_and_shift(noise)
        return (noise - shift) * torch.exp(-log_scale)

    def _log_scale_and_shift(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        output = self.output(self.hidden(latent * self.held)) * (1 - self.held).repeat(2)
        log_scale, shift = output.chunk(2, 1)
        return LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT), shift


class Flow(nn.Module):
    """Whitening by a Gaussian, then couplings that lead to N(0, I); before any training it is that Gaussian.

    `mean` (latent_dim,) and `factor` (latent_dim, latent_dim), the lower Cholesky factor of the covariance, are
    float64. Each pair of couplings holds one random half of the dimensions, then the other.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim, dtype=torch.float64))
        self.register_buffer("factor", torch.eye(latent_dim, dtype=torch.float64))
        couplings = []
        for _ in range(NUM_COUPLINGS // 2):
            half = (torch.randperm(latent_dim) < latent_dim // 2).float()
            couplings += [Coupling(half), Coupling(1 - half)]
        self.couplings = nn.ModuleList(couplings)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw latents (num_samples, latent_dim)."""
        return self.from_noise(torch.randn(num_samples, len(self.mean), generator=generator))

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density of latents (batch, latent_dim) in nats, shape (batch,)."""
        noise, log_determinant = self.to_noise(latent)
        return standard_normal_log_prob(noise) + log_determinant

    def to_noise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that stands for latents (batch, latent_dim), and the log determinant of the map, (batch,)."""
        noise = whiten(latent, self.mean, self.factor).float()
        log_determinant = -self.factor.diagonal().log().sum().float().expand(len(latent))
        for coupling in self.couplings:
            noise, log_scale = coupling(noise)
            log_determinant = log_determinant + log_scale
        return noise, log_determinant

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """The latents (batch, latent_dim) of which `to_noise` makes this."""
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, Coupling)
            noise = coupling.inverse(noise)
        return (self.mean + noise.double() @ self.factor.T).float()


def fit_flow(train: Posterior, heldout: Tensor, *, seed: int) -> Flow:
    """Train a flow on the posteriors, drawn from anew in every epoch, and keep the weights best for `heldout`.

    Training ends early when latents `heldout` (batch, latent_dim) have gained nothing for `PATIENCE` epochs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the halves, the initial weights and the dropout
        flow = Flow(train.mean.shape[1])
        flow.mean, flow.factor = aggregate_gaussian(train)
        optimizer = Adam(flow.parameters(), weight_decay=WEIGHT_DECAY)
        num_epochs = math.ceil(NUM_STEPS / math.ceil(len(train.mean) / BATCH_SIZE))
        best_nats, best_epoch, best_weights = _mean_log_prob(flow, heldout), 0, copy.deepcopy(flow.state_dict())
        for epoch in range(1, num_epochs + 1):
            learning_rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / num_epochs))
            _train_epoch(flow, train.sample(generator), optimizer, learning_rate, generator)
            nats = _mean_log_prob(flow, heldout)
            if nats > best_nats:
                best_nats, best_epoch, best_weights = nats, epoch, copy.deepcopy(flow.state_dict())
            if epoch - best_epoch >= PATIENCE:
                break
    flow.load_state_dict(best_weights)
    flow.eval()
    return flow


def _train_epoch(flow: Flow, latent: Tensor, optimizer: Adam, learning_rate: float, generator: torch.Generator) -> None:
    flow.train()
    for batch in latent[torch.randperm(len(latent), generator=generator)].split(BATCH_SIZE):
        optimizer.zero_grad()
        (-flow.log_prob(batch).mean()).backward()
        optimizer.step(learning_rate)


@torch.no_grad()
def _mean_log_prob(flow: Flow, latent: Tensor) -> float:
    return float(flow.eval().log_prob(latent).double().mean())
