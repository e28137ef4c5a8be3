import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import disc_images, small_params

from facevae import objective
from facevae.errors import UserError
from facevae.model import VAE, to_unit_range
from facevae.params import Params
from facevae.training import (
    EpochRow,
    TrainingResult,
    _batches,
    _Loop,
    kl_weight_at,
    learning_rate_at,
    num_batches,
    train,
)

TRAIN, VALIDATION = disc_images(60), disc_images(21, seed=1)
CPU = torch.device("cpu")


def run(params: Params, seed: int = 0, rows: list[EpochRow] | None = None) -> TrainingResult:
    told: list[EpochRow] = [] if rows is None else rows
    return train(TRAIN, VALIDATION, params.model, params.train, seed=seed, on_epoch=told.append)


def weights(model: VAE) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("likelihood", ["squared_error", "gaussian", "bernoulli"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_validation_loss(likelihood: str, precision: str) -> None:
    binarization = "threshold" if likelihood == "bernoulli" else "none"
    params = small_params(train__likelihood=likelihood, train__binarization=binarization, train__precision=precision)
    history = run(params.model_copy(update={"train": params.train.model_copy(update={"epochs": 15})})).history
    losses = history["validation_loss"]
    start = losses.iloc[0]
    assert losses.min() < start - 0.25 * abs(start)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    params = small_params(model__normalization="batch", model__dropout=0.2)
    first, again, other = run(params, seed=1), run(params, seed=1), run(params, seed=2)
    pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert not torch.equal(first.model.encoder.mean.weight, other.model.encoder.mean.weight)


def test_images_may_be_a_read_only_memory_map(tmp_path: object) -> None:
    path = f"{tmp_path}/images.npy"
    np.save(path, TRAIN)
    params = small_params()
    rows: list[EpochRow] = []
    mapped = train(np.load(path, mmap_mode="r"), VALIDATION, params.model, params.train, seed=0, on_epoch=rows.append)
    pd.testing.assert_frame_equal(mapped.history, run(params).history, check_exact=True)


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    """A learning rate this high makes the loss rise again, and the model must be that of before."""
    params = small_params(train__epochs=12, train__learning_rate=0.08)
    result = run(params)
    losses = result.history["validation_loss"]
    assert result.best_epoch == losses.to_numpy().argmin() + 1 < 12
    loop = _Loop(result.model, params.train, len(TRAIN), CPU, seed=0)
    assert loop.validate(VALIDATION)["validation_loss"] == pytest.approx(losses.min(), rel=1e-5)
    assert result.summary()["best_validation_loss"] == losses.min()


def test_on_epoch_is_told_every_row_of_the_history() -> None:
    rows: list[EpochRow] = []
    result = run(small_params(train__epochs=3), rows=rows)
    pd.testing.assert_frame_equal(pd.DataFrame(rows), result.history, check_dtype=False)
    assert result.history["epoch"].to_list() == [1, 2, 3]


def test_the_validation_loss_does_not_depend_on_the_batch_size() -> None:
    model = VAE(small_params().model, 8, 3)
    losses = [
        _Loop(model, small_params(train__batch_size=size).train, 60, CPU, seed=0).validate(VALIDATION)["validation_kl"]
        for size in (1, 8, 21)
    ]
    with torch.no_grad():
        posterior = model.eval().encode(to_unit_range(VALIDATION, CPU))
    assert losses == pytest.approx([float(objective.kl_nats(posterior).mean())] * 3, rel=1e-5)


def test_validation_is_without_dropout() -> None:
    params = small_params(model__dropout=0.5)
    loop = _Loop(VAE(params.model, 8, 3).train(), params.train, 60, CPU, seed=0)
    assert loop.validate(VALIDATION) == loop.validate(VALIDATION)


def loop_with(**changes: object) -> _Loop:
    params = small_params(**changes)
    torch.manual_seed(0)
    return _Loop(VAE(params.model, 8, 3), params.train, len(TRAIN), CPU, seed=0)


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_step_that_is_not_finite_changes_nothing(normalization: str) -> None:
    loop = loop_with(model__normalization=normalization)
    loop._train_step(to_unit_range(TRAIN[:8], CPU))
    before, state = weights(loop.model), copy.deepcopy(loop.optimizer.state_dict()["state"])
    *_, skip = loop._train_step(torch.full((8, 3, 8, 8), math.nan))
    assert bool(skip)
    assert all(torch.equal(weight, before[name]) for name, weight in loop.model.state_dict().items())
    for index, moments in loop.optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[name], state[index][name]) for name in moments)
    *_, skip = loop._train_step(to_unit_range(TRAIN[:8], CPU))
    assert not bool(skip)
    assert not torch.equal(loop.model.encoder.mean.weight, before["encoder.mean.weight"])


def test_an_exploding_step_is_skipped() -> None:
    images = to_unit_range(TRAIN[:8], CPU)
    _, norm, skip = loop_with(train__skip_gradient_norm=1e9)._train_step(images)
    assert not bool(skip)
    loop = loop_with(train__skip_gradient_norm=float(norm) * 0.9)
    before = weights(loop.model)
    *_, skip = loop._train_step(images)
    assert bool(skip)
    assert all(torch.equal(weight, before[name]) for name, weight in loop.model.state_dict().items())


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(limit: float) -> None:
    """Steps of plain Adam after `clip_grad_norm_` must lead to the same weights; short gradients are left alone."""
    images = to_unit_range(TRAIN[:8], CPU)
    loop = loop_with(train__clip_gradient_norm=limit)
    reference = copy.deepcopy(loop.model)
    optimizer = torch.optim.Adam([weight for weight in reference.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(3):
        noise = torch.Generator()
        noise.set_state(loop.noise.get_state())
        posterior = reference.encode(images)
        reconstruction = reference.decode(posterior.sample(noise))
        loss = objective.squared_error(reconstruction, images).mean() + objective.kl_nats(posterior).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), limit)
        optimizer.step()
        loop._train_step(images)
    for name, weight in loop.model.state_dict().items():
        torch.testing.assert_close(weight, reference.state_dict()[name], atol=2e-5, rtol=1e-3)


def test_too_many_skipped_steps_stop_the_training() -> None:
    with pytest.raises(UserError, match=r"8 steps .* train.max_skipped_steps allows 3, .* stopped at step 8") as error:
        run(small_params(train__skip_gradient_norm=1e-6, train__max_skipped_steps=3))
    assert "lower train.learning_rate" in str(error.value)


def test_an_epoch_of_skipped_steps_alone_stops_the_training() -> None:
    with pytest.raises(UserError, match="train.max_skipped_steps allows 100, and not all of them"):
        run(small_params(train__skip_gradient_norm=1e-6, train__max_skipped_steps=100))


def test_skipped_steps_are_counted_and_left_out_of_the_means() -> None:
    norms = run(small_params(train__epochs=1)).history["largest_gradient_norm"]
    params = small_params(train__epochs=1, train__skip_gradient_norm=0.999 * float(norms.iloc[0]))
    result = run(params)
    assert result.summary()["total_skipped_steps"] >= 1
    assert result.history["largest_gradient_norm"].iloc[0] < norms.iloc[0]
    assert result.history["train_loss"].iloc[0] > 1


def test_the_losses_of_both_splits_weigh_the_kl_alike_during_its_warmup() -> None:
    row = run(small_params(train__epochs=1, train__kl_warmup_epochs=50, train__beta=2.0)).history.iloc[0]
    for split in ("train", "validation"):
        expected = row[f"{split}_reconstruction"] + 2.0 * row[f"{split}_kl"]
        assert row[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"), [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (8, 4, [4, 4])]
)
def test_a_last_batch_of_one_image_joins_the_one_before(num_images: int, batch_size: int, sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(num_images)
    batches = list(_batches(TRAIN[:num_images], batch_size, order))
    assert [len(batch) for batch in batches] == sizes
    assert num_batches(num_images, batch_size) == len(sizes)
    assert np.array_equal(np.concatenate(batches), TRAIN[order])


def test_the_learning_rate_warms_up_and_decays() -> None:
    params = small_params(train__learning_rate=1.0, train__learning_rate_warmup_steps=3).train
    assert [learning_rate_at(params, step, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = params.model_copy(update={"learning_rate_decay": "cosine", "learning_rate_warmup_steps": 0})
    assert learning_rate_at(cosine, 0, 100) == 1
    assert learning_rate_at(cosine, 50, 100) == pytest.approx(0.5)
    assert learning_rate_at(cosine, 99, 100) < 0.001


def test_the_kl_warms_up_to_beta() -> None:
    params = small_params(train__beta=2.0, train__kl_warmup_epochs=4).train
    assert [kl_weight_at(params, epochs) for epochs in (0, 1, 4, 9)] == [0, 0.5, 2, 2]
    assert kl_weight_at(params.model_copy(update={"kl_warmup_epochs": 0}), 0) == 2


def test_sigma_is_learned_for_the_gaussian_alone_and_stays_above_its_floor() -> None:
    fixed = run(small_params()).model.log_sigma
    assert fixed.item() == pytest.approx(0.5 * math.log(0.5))
    learned = run(small_params(train__likelihood="gaussian", train__epochs=10)).model.log_sigma
    assert learned.item() < fixed.item()
    loop = loop_with(train__likelihood="gaussian", train__learning_rate=100.0)
    loop._train_step(to_unit_range(TRAIN[:8], CPU))
    assert loop.model.log_sigma.item() >= objective.LOG_SIGMA_FLOOR


def test_the_average_of_the_weights_is_what_is_validated_and_kept() -> None:
    params = small_params(train__average_decay=0.9, train__epochs=3, model__normalization="batch")
    loop = loop_with(train__average_decay=0.9, model__normalization="batch")
    expected = weights(loop.validated)
    for step in range(1, 30):
        loop._train_step(to_unit_range(TRAIN[:8], CPU))
        decay = min(0.9, (1 + step) / (10 + step))
        current = loop.model.state_dict()
        for name, weight in expected.items():
            if weight.is_floating_point():
                expected[name] = decay * weight + (1 - decay) * current[name]
    for name, weight in loop.validated.state_dict().items():
        wanted = expected[name] if weight.is_floating_point() else current[name]
        torch.testing.assert_close(weight, wanted)
    assert not torch.equal(loop.validated.encoder.mean.weight, loop.model.encoder.mean.weight)
    result = run(params)
    kept = loop_with(train__average_decay=0.9, model__normalization="batch")
    kept.validated.load_state_dict(result.model.state_dict())
    best = result.history["validation_loss"].min()
    assert kept.validate(VALIDATION)["validation_loss"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("binarization", ["threshold", "fixed", "per_epoch"])
def test_black_and_white_images_are_trained_on(monkeypatch: pytest.MonkeyPatch, binarization: str) -> None:
    seen: list[str] = []
    step = _Loop._train_step

    def record(loop: _Loop, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert set(images.unique().tolist()) == {0.0, 1.0}
        seen.append(str(sorted(images.flatten(1).sum(1).tolist())))
        return step(loop, images)

    monkeypatch.setattr(_Loop, "_train_step", record)
    run(small_params(train__likelihood="bernoulli", train__binarization=binarization, train__batch_size=60))
    assert (seen[0] == seen[1]) is (binarization != "per_epoch")


def test_to_unit_range_moves_channels_and_scales() -> None:
    images = to_unit_range(TRAIN[:2], CPU)
    assert images.shape == (2, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[1, 2, 3, 4].item() == pytest.approx(TRAIN[1, 3, 4, 2] / 255)
