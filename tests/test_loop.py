import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MUON, disc_images, small_params
from numpy.typing import NDArray

from facevae.config.schema import Params
from facevae.errors import UserError
from facevae.model import objective
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, largest_map_bytes, new_model
from facevae.train import loop
from facevae.train.batches import Batches, ImageReader
from facevae.train.epoch import EpochRow, validate
from facevae.train.loop import Progress, Setup, TrainingResult, train
from facevae.train.previews import Previews
from facevae.train.step import Optimization, StepReport

TRAIN, VALIDATION = disc_images(60), disc_images(21, seed=1)
CPU = torch.device("cpu")
VALIDATION_READER = ImageReader(VALIDATION, CPU)
Parts = Sequence[tuple[torch.Tensor, torch.Tensor]]


def run(
    params: Params,
    seed: int = 0,
    start: Progress | None = None,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
    images: NDArray[np.uint8] = TRAIN,
    draw: bool = False,
) -> TrainingResult:
    model = new_model(params.model, 8, 3, seed=seed)
    setup = Setup(images, VALIDATION, params.train, CPU, seed=seed, draw=draw)
    return train(model, setup, start=start, on_epoch=on_epoch)


def validation_row(model: VAE, params: Params) -> EpochRow:
    """A validation of the model as it is."""
    train_params = params.train.model_copy(update={"average_decay": None})
    optimization = Optimization(model, train_params, 1, CPU)
    batches = Batches(params.train, params.model.latent_dim, 0, CPU)
    return validate(optimization, batches.for_validation(VALIDATION_READER))


@pytest.mark.parametrize("likelihood", ["squared_error", "gaussian", "bernoulli"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", [{}, MUON])
def test_training_lowers_the_validation_loss(likelihood: str, precision: str, optimizer: dict[str, Any]) -> None:
    binarization = "threshold" if likelihood == "bernoulli" else "none"
    binary = {"train__likelihood": likelihood, "train__binarization": binarization}
    params = small_params(**binary, train__precision=precision, **optimizer)
    history = run(params.model_copy(update={"train": params.train.model_copy(update={"epochs": 15})})).history
    losses = history["validation_loss"]
    start = losses.iloc[0]
    assert losses.min() < start - 0.25 * abs(start)


def test_the_seed_determines_the_bits() -> None:
    params = small_params(model__normalization="batch", model__dropout=0.2)
    first, again, other = run(params, seed=1), run(params, seed=1), run(params, seed=2)
    pd.testing.assert_frame_equal(first.history, again.history, check_exact=True)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert not torch.equal(first.model.encoder.mean.weight, other.model.encoder.mean.weight)


def test_maps_use_the_memory_format_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    params = small_params(model__normalization="batch", train__average_decay=0.9, train__precision="float32")
    usual = run(params)
    sizes: list[int] = []

    def channels_first(_: torch.device, size: int) -> torch.memory_format:
        sizes.append(size)
        return torch.contiguous_format

    monkeypatch.setattr(loop, "memory_format", channels_first)
    result = run(params)
    assert sizes == [largest_map_bytes(params.model, 8)]
    pd.testing.assert_frame_equal(result.history, usual.history, rtol=1e-3)
    for trained, is_first in ((result, True), (usual, False)):
        kernel = trained.model.encoder.blocks[0][0].weight  # type: ignore[index]
        assert kernel.is_contiguous() is is_first


def test_images_may_be_a_read_only_memory_map(tmp_path: object) -> None:
    path = f"{tmp_path}/images.npy"
    np.save(path, TRAIN)
    params = small_params()
    mapped = run(params, images=np.load(path, mmap_mode="r"))
    pd.testing.assert_frame_equal(mapped.history, run(params).history, check_exact=True)


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    """With this high learning rate the loss rises again."""
    params = small_params(train__epochs=12, train__learning_rate=0.08)
    result = run(params)
    losses = result.history["validation_loss"]
    assert result.best_epoch == losses.to_numpy().argmin() + 1 < 12
    assert validation_row(result.model, params)["validation_loss"] == pytest.approx(losses.min(), rel=1e-5)
    assert result.summary()["best_validation_loss"] == losses.min()


def test_on_epoch_gets_every_row_of_the_history() -> None:
    rows: list[EpochRow] = []
    result = run(small_params(train__epochs=3), on_epoch=[lambda progress: rows.append(progress.rows[-1])])
    pd.testing.assert_frame_equal(pd.DataFrame(rows), result.history, check_dtype=False)
    assert result.history["epoch"].to_list() == [1, 2, 3]


def test_the_validation_loss_does_not_depend_on_the_batch_size() -> None:
    model = VAE(small_params().model, 8, 3)
    kls = [validation_row(model, small_params(train__batch_size=size))["validation_kl"] for size in (1, 8, 21)]
    with torch.no_grad():
        posterior = model.eval().encode(to_unit_range(VALIDATION, CPU))
    assert kls == pytest.approx([float(objective.kl_nats(posterior).mean())] * 3, rel=1e-5)


def test_validation_uses_no_dropout() -> None:
    params = small_params(model__dropout=0.5)
    model = VAE(params.model, 8, 3).train()
    assert validation_row(model, params) == validation_row(model, params)


def test_too_many_skipped_steps_stop_the_training() -> None:
    with pytest.raises(UserError, match=r"stopped at step 8: 8 steps .* train.max_skipped_steps allows 3 ") as error:
        run(small_params(train__skip_gradient_norm=1e-6, train__max_skipped_steps=3))
    assert "lower train.learning_rate" in str(error.value)


def test_an_epoch_with_every_step_skipped_stops_the_training() -> None:
    with pytest.raises(UserError, match="train.max_skipped_steps allows 100 skipped steps, and never all"):
        run(small_params(train__skip_gradient_norm=1e-6, train__max_skipped_steps=100))


def test_skipped_steps_are_counted() -> None:
    norms = run(small_params(train__epochs=1)).history["largest_gradient_norm"]
    params = small_params(train__epochs=1, train__skip_gradient_norm=0.999 * float(norms.iloc[0]))
    result = run(params)
    assert result.summary()["total_skipped_steps"] >= 1
    assert result.history["largest_gradient_norm"].iloc[0] < norms.iloc[0]


def test_skipped_steps_do_not_count_in_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    skips = iter([False, True] * 4)

    def report(optimization: Optimization, _parts: Parts, num_images: int) -> StepReport:
        optimization.step += 1
        skip = next(skips)
        terms = torch.tensor([math.nan if skip else 10.0, 2.0]) * num_images
        return StepReport(terms, torch.tensor(math.inf if skip else 3.0), torch.tensor(skip))

    monkeypatch.setattr(Optimization, "take_step", report)
    row = run(small_params(train__epochs=1)).history.iloc[0]
    assert [row[f"train_{name}"] for name in ("reconstruction", "kl", "loss")] == [10, 2, 12]
    assert (row["largest_gradient_norm"], row["skipped_steps"]) == (3, 4)


def test_reported_losses_weigh_the_kl_fully_during_its_warmup() -> None:
    row = run(small_params(train__epochs=8, train__kl_warmup_epochs=8, train__beta=2.0)).history.iloc[0]
    for split in ("train", "validation"):
        expected = row[f"{split}_reconstruction"] + 2.0 * row[f"{split}_kl"]
        assert row[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_take_the_same_steps() -> None:
    whole = run(small_params(train__likelihood="gaussian", train__horizontal_flip=True)).history
    parts = run(small_params(train__likelihood="gaussian", train__horizontal_flip=True, train__micro_batch_size=3))
    assert not parts.history.equals(whole)  # summed in another order
    pd.testing.assert_frame_equal(parts.history, whole, check_exact=False, rtol=1e-4)


def test_the_averaged_weights_are_validated_and_kept() -> None:
    params = small_params(train__average_decay=0.9, train__epochs=3, model__normalization="batch")
    result = run(params)
    best = result.history["validation_loss"].min()
    assert validation_row(result.model, params)["validation_loss"] == pytest.approx(best, rel=1e-5)


STATEFUL = {  # everything that a training carries from epoch to epoch
    "train__epochs": 5,
    "train__likelihood": "gaussian",
    "train__average_decay": 0.9,
    "train__horizontal_flip": True,
    "train__clip_gradient_norm": 100.0,
    "train__learning_rate_decay": "cosine",
    "train__learning_rate": 0.3,  # high enough that the best epoch is not the last
    "model__normalization": "batch",
    "model__dropout": 0.2,
}


@pytest.mark.parametrize("optimizer", [{}, MUON | {"train__num_importance_samples": 2}])
@pytest.mark.parametrize("stopped_after", [1, 2, 4, 5])
def test_a_stopped_training_continues_to_the_same_bits(stopped_after: int, optimizer: dict[str, Any]) -> None:
    params = small_params(**{**STATEFUL, **optimizer})
    seen: dict[int, Progress] = {}
    whole = run(params, on_epoch=[lambda now: seen.update({len(now.rows): copy.deepcopy(now)})], draw=True)
    assert optimizer or whole.best_epoch < 5  # with Adam, so that the weights to keep are not the last ones
    called: list[int] = []
    previews: list[Previews] = []

    def note(progress: Progress) -> None:
        called.append(len(progress.rows))
        previews[:] = progress.previews

    rest = run(params, start=seen[stopped_after], on_epoch=[note], draw=True)
    pd.testing.assert_frame_equal(rest.history, whole.history, check_exact=True)
    assert called == list(range(stopped_after, 6))
    assert previews == seen[5].previews
    assert rest.best_epoch == whole.best_epoch
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, rest.model.state_dict()[name]), name


def test_drawing_previews_changes_no_weights() -> None:
    params = small_params(**STATEFUL)
    drawn, plain = run(params, draw=True).model.state_dict(), run(params).model.state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in drawn.items())


def test_half_of_the_images_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = Optimization.take_step

    def record(optimization: Optimization, parts: Parts, num_images: int) -> StepReport:
        for images, _ in parts:
            seen.extend(images.clone())
        return step(optimization, parts, num_images)

    monkeypatch.setattr(Optimization, "take_step", record)
    run(small_params(train__horizontal_flip=True, train__epochs=2))
    originals = to_unit_range(TRAIN, CPU)
    kinds = []
    for image in seen:
        as_is, mirrored = ((image == other).flatten(1).all(1).any() for other in (originals, originals.flip(3)))
        assert as_is or mirrored
        kinds.append(bool(mirrored))
    first, second = kinds[:60], kinds[60:]
    assert 15 < sum(first) < 45
    assert first != second


@pytest.mark.parametrize("binarization", ["threshold", "fixed", "per_epoch"])
def test_binarised_images_are_black_and_white(monkeypatch: pytest.MonkeyPatch, binarization: str) -> None:
    seen: list[str] = []
    step = Optimization.take_step

    def record(optimization: Optimization, parts: Parts, num_images: int) -> StepReport:
        [(images, _)] = parts
        assert set(images.unique().tolist()) == {0.0, 1.0}
        seen.append(str(sorted(images.flatten(1).sum(1).tolist())))
        return step(optimization, parts, num_images)

    monkeypatch.setattr(Optimization, "take_step", record)
    run(small_params(train__likelihood="bernoulli", train__binarization=binarization, train__batch_size=60))
    assert (seen[0] == seen[1]) is (binarization != "per_epoch")


def test_to_unit_range_moves_channels_and_scales() -> None:
    images = to_unit_range(TRAIN[:2], CPU)
    assert images.shape == (2, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[1, 2, 3, 4].item() == pytest.approx(TRAIN[1, 3, 4, 2] / 255)
