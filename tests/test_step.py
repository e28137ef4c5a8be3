import copy
import math

import pytest
import torch
from conftest import MUON, disc_images, small_params

from facevae.model import objective
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, new_model
from facevae.priors.normal import standard_normal_log_prob
from facevae.train.schedules import kl_weight_at, learning_rate_factor
from facevae.train.step import Optimization, StepReport

CPU = torch.device("cpu")
IMAGES = to_unit_range(disc_images(8), CPU)
STEPS_PER_EPOCH = 7


def optimization_with(**changes: object) -> Optimization:
    params = small_params(**changes)
    return Optimization(new_model(params.model, 8, 3, seed=0), params.train, STEPS_PER_EPOCH, CPU)


def take_step(optimization: Optimization, images: torch.Tensor, seed: int = 0) -> StepReport:
    latent_dim = optimization.model.params.latent_dim
    noise = torch.randn(len(IMAGES), latent_dim, generator=seeded(seed))
    return optimization.take_step([(images, noise)], len(images))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(model: VAE) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("optimizer", [{}, MUON])
def test_a_step_with_a_nan_gradient_changes_nothing(normalization: str, optimizer: dict[str, object]) -> None:
    optimization = optimization_with(model__normalization=normalization, train__likelihood="gaussian", **optimizer)
    take_step(optimization, IMAGES)
    before = copy.deepcopy(optimization.tensors())
    *_, skip = take_step(optimization, torch.full((8, 3, 8, 8), math.nan))
    assert bool(skip)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimization.tensors().items())
    *_, skip = take_step(optimization, IMAGES)
    assert not bool(skip)
    assert not torch.equal(optimization.model.encoder.mean.weight, before["model.encoder.mean.weight"])


def test_a_step_with_a_long_gradient_is_skipped() -> None:
    _, norm, skip = take_step(optimization_with(train__skip_gradient_norm=1e9), IMAGES)
    assert not bool(skip)
    optimization = optimization_with(train__skip_gradient_norm=float(norm) * 0.9)
    before = weights(optimization.model)
    *_, skip = take_step(optimization, IMAGES)
    assert bool(skip)
    assert all(torch.equal(weight, before[name]) for name, weight in optimization.model.state_dict().items())


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_skipped_step_leaves_the_average_as_it_was(normalization: str) -> None:
    optimization = optimization_with(train__average_decay=0.9, model__normalization=normalization)
    for _ in range(3):
        take_step(optimization, IMAGES)
    before = weights(optimization.validated)
    *_, skip = take_step(optimization, torch.full((8, 3, 8, 8), math.nan))
    assert bool(skip)
    assert all(torch.equal(weight, before[name]) for name, weight in optimization.validated.state_dict().items())


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(limit: float) -> None:
    """Compare with Adam after `clip_grad_norm_`; gradients below the limit stay as they are."""
    optimization = optimization_with(train__clip_gradient_norm=limit)
    reference = copy.deepcopy(optimization.model)
    optimizer = torch.optim.Adam([weight for weight in reference.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(3):
        posterior = reference.encode(IMAGES)
        reconstruction = reference.decode(posterior.sample(seeded(0)))
        loss = objective.squared_error(reconstruction, IMAGES).mean() + objective.kl_nats(posterior).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), limit)
        optimizer.step()
        take_step(optimization, IMAGES)
    for name, weight in optimization.model.state_dict().items():
        torch.testing.assert_close(weight, reference.state_dict()[name], atol=2e-5, rtol=1e-3)


def test_the_learning_rate_warms_up_and_decays() -> None:
    params = small_params(train__learning_rate_warmup_steps=3).train
    assert [learning_rate_factor(params, step, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = params.model_copy(update={"learning_rate_decay": "cosine", "learning_rate_warmup_steps": 0})
    assert learning_rate_factor(cosine, 0, 100) == 1
    assert learning_rate_factor(cosine, 50, 100) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 99, 100) < 0.001


def test_the_kl_warms_up_to_beta() -> None:
    params = small_params(train__beta=2.0, train__kl_warmup_epochs=4, train__epochs=4).train
    assert [kl_weight_at(params, epochs) for epochs in (0, 1, 4, 9)] == [0, 0.5, 2, 2]
    assert kl_weight_at(params.model_copy(update={"kl_warmup_epochs": 0}), 0) == 2


def test_only_the_gaussian_learns_sigma_and_above_its_floor() -> None:
    fixed, learned = optimization_with(), optimization_with(train__likelihood="gaussian")
    for optimization in (fixed, learned):
        for _ in range(20):
            take_step(optimization, IMAGES)
    assert fixed.model.log_sigma.item() == pytest.approx(0.5 * math.log(0.5))
    assert learned.model.log_sigma.item() < fixed.model.log_sigma.item()
    optimization = optimization_with(train__likelihood="gaussian", train__learning_rate=100.0)
    take_step(optimization, IMAGES)
    assert optimization.model.log_sigma.item() >= objective.LOG_SIGMA_FLOOR


def test_the_average_follows_the_weights() -> None:
    optimization = optimization_with(train__average_decay=0.9, model__normalization="batch")
    expected = weights(optimization.validated)
    for step in range(1, 30):
        take_step(optimization, IMAGES)
        decay = min(0.9, (1 + step) / (10 + step))
        current = optimization.model.state_dict()
        for name, weight in expected.items():
            if weight.is_floating_point():
                expected[name] = decay * weight + (1 - decay) * current[name]
    for name, weight in optimization.validated.state_dict().items():
        wanted = expected[name] if weight.is_floating_point() else current[name]
        torch.testing.assert_close(weight, wanted)
    assert not torch.equal(optimization.validated.encoder.mean.weight, optimization.model.encoder.mean.weight)


def test_a_step_weighs_the_kl_by_its_warmup() -> None:
    optimization = optimization_with(train__beta=200.0, train__kl_warmup_epochs=4, train__epochs=4)
    reference = copy.deepcopy(optimization.model)
    optimization.step = 2 * STEPS_PER_EPOCH - 1  # the last step of the first half of the warm-up
    take_step(optimization, IMAGES)
    posterior = reference.encode(IMAGES)
    reconstruction = reference.decode(posterior.sample(seeded(0)))
    (objective.squared_error(reconstruction, IMAGES) + 100 * objective.kl_nats(posterior)).mean().backward()
    expected = reference.encoder.mean.bias.grad
    torch.testing.assert_close(optimization.model.encoder.mean.bias.grad, expected, rtol=1e-4, atol=1e-4)


def test_muon_and_adam_share_the_weights() -> None:
    """Muon moves matrices by its learning rate in the spectral norm; Adam moves biases and log sigma as before."""
    changes = {**MUON, "train__muon_learning_rate": 0.02, "train__likelihood": "gaussian"}
    optimization = optimization_with(train__learning_rate_warmup_steps=3, **changes)
    before = weights(optimization.model)
    take_step(optimization, IMAGES)
    change = {name: weight - before[name] for name, weight in optimization.model.state_dict().items()}
    assert torch.linalg.matrix_norm(change["encoder.mean.weight"], 2).item() == pytest.approx(0.02 / 4, rel=0.07)
    assert change["decoder.features.bias"].abs().max().item() == pytest.approx(0.01 / 4, rel=1e-3)
    assert change["log_sigma"].abs().item() == pytest.approx(10 * 0.01 / 4, rel=1e-3)


def test_a_step_is_as_long_as_the_schedule_says() -> None:
    """Adam's first step moves a weight by the learning rate and log sigma by ten times that."""
    optimization = optimization_with(train__likelihood="gaussian", train__learning_rate_warmup_steps=3)
    before = weights(optimization.model)
    take_step(optimization, IMAGES)
    for name, moved in (("decoder.features.bias", 0.01 / 4), ("log_sigma", 10 * 0.01 / 4)):
        change = optimization.model.state_dict()[name] - before[name]
        assert change.abs().max().item() == pytest.approx(moved, rel=1e-3)


def test_several_draws_give_the_importance_weighted_bound() -> None:
    optimization = optimization_with(train__num_importance_samples=4)
    model = optimization.model
    noise = torch.randn(len(IMAGES), 4 * 3, generator=seeded(0))
    found = optimization.validation_objective(IMAGES, noise).sum()
    posterior = model.encode(IMAGES)
    log_weights = []
    for draw in noise.split(3, dim=1):
        latent = posterior.at(draw)
        errors = objective.squared_error(model.decode(latent), IMAGES)
        log_weights.append(standard_normal_log_prob(latent) - posterior.log_density(latent) - errors)
    torch.testing.assert_close(found, (math.log(4) - torch.stack(log_weights).logsumexp(0)).sum())
