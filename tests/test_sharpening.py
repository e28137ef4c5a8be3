import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import disc_images, small_params
from torch.nn import functional

from facevae.config.schema import Params
from facevae.errors import UserError
from facevae.evaluate.distances import sharpness
from facevae.model.inference import decode_all, encode_all
from facevae.model.pixels import to_unit_range
from facevae.model.vae import VAE, Posterior, new_model
from facevae.storage.tables import write_csv
from facevae.tracking.outputs import epoch_points
from facevae.train.detail import colour_error, grain_loss, pattern_error
from facevae.train.discriminator import (
    Discriminator,
    Verdict,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from facevae.train.distributed import Workers
from facevae.train.epoch import EpochRow
from facevae.train.loop import Progress, Setup, TrainingResult, train
from facevae.train.phases import train_and_sharpen
from facevae.train.sharpening import Sharpening, latents_to_judge
from facevae.train.step import StepReport

TRAIN, VALIDATION = disc_images(60), disc_images(21, seed=1)
CPU = torch.device("cpu")
IMAGES = to_unit_range(TRAIN[:8], CPU)
FURTHER = ["discriminator_loss", "adversarial_loss", "feature_loss"]
STATEFUL = {  # everything that a training and its sharpening carry from epoch to epoch
    "train__epochs": 2,
    "train__likelihood": "gaussian",
    "train__average_decay": 0.9,
    "train__horizontal_flip": True,
    "model__normalization": "batch",
    "model__dropout": 0.2,
    "sharpen__epochs": 3,
    "sharpen__muon_learning_rate": 0.05,
}


def run(
    params: Params,
    start: Progress | None = None,
    on_epoch: Sequence[Callable[[Progress], None]] = (),
    workers: Workers = Workers(),  # noqa: B008 - frozen
) -> TrainingResult:
    model = new_model(params.model, 8, 3, seed=0)
    setup = Setup(TRAIN, VALIDATION, params.train, CPU, seed=0, workers=workers, draw=True)
    return train_and_sharpen(model, setup, params.sharpen, start=start, on_epoch=on_epoch)


def sharpening_with(**changes: object) -> Sharpening:
    params = small_params(sharpen__epochs=1, **changes)
    model = new_model(params.model, 8, 3, seed=0)
    return Sharpening(model, params.sharpen, params.train, 10, CPU, seed=0)


def take_step(sharpening: Sharpening, images: torch.Tensor = IMAGES) -> bool:
    sharpening.model.train()
    noise = torch.randn(len(images), 3, generator=torch.Generator().manual_seed(0))
    return bool(sharpening.take_step([(images, noise)], len(images)).skipped)


def fine(picture: torch.Tensor, size: int) -> torch.Tensor:
    """A picture (channel, height, width) without the mean of each pixel's `size` x `size` neighbours inside it."""
    ones = torch.ones(1, 1, size, size)
    sums = [functional.conv2d(x, ones, padding=size // 2) for x in (picture[:, None], torch.ones(1, 1, 8, 8))]
    return picture - (sums[0] / sums[1])[:, 0]


def detail_of(pictures: torch.Tensor) -> list[torch.Tensor]:
    """The local detail of pictures (batch, 3, 8, 8), at full and half size, by convolutions that are written out."""
    kernels = torch.zeros(4, 1, 3, 3)
    for index, (ends, others) in enumerate((((1, 0), (1, 2)), ((0, 1), (2, 1)), ((0, 0), (2, 2)), ((0, 2), (2, 0)))):
        kernels[index, 0, *ends] = kernels[index, 0, *others] = 0.5
        kernels[index, 0, 1, 1] = -1
    grey = pictures.sum(1, keepdim=True) / 3
    half = (grey[..., ::2, ::2] + grey[..., 1::2, ::2] + grey[..., ::2, 1::2] + grey[..., 1::2, 1::2]) / 4
    squares = [functional.conv2d(maps, kernels) ** 2 for maps in (grey, half)]  # 6 x 6 and 2 x 2: one window each
    return [(maps.sum((2, 3)) / maps[0, 0].numel() + 1e-5) ** 0.5 for maps in squares]


def state(model: VAE) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def test_without_sharpening_the_training_is_the_plain_one() -> None:
    params = small_params(model__normalization="batch")
    plain = train(new_model(params.model, 8, 3, seed=0), Setup(TRAIN, VALIDATION, params.train, CPU, seed=0))
    off = run(params)
    pd.testing.assert_frame_equal(off.history, plain.history, check_exact=True)
    assert off.summary() == plain.summary()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, off.model.state_dict()[name]), name


def test_sharpening_changes_the_decoder_of_the_best_epoch_and_nothing_else() -> None:
    params = small_params(**STATEFUL | {"train__epochs": 6, "train__learning_rate": 0.3})
    off = params.model_copy(update={"sharpen": params.sharpen.model_copy(update={"epochs": 0})})
    plain, sharpened = run(off), run(params)
    assert plain.best_epoch < 6  # so that the best weights are not the last ones
    pd.testing.assert_frame_equal(sharpened.history.iloc[:6][plain.history.columns], plain.history, check_exact=True)
    assert sharpened.best_epoch == plain.best_epoch
    before = plain.model.state_dict()
    for name, weight in sharpened.model.state_dict().items():
        assert torch.equal(weight, before[name]) is not name.startswith("decoder."), name


def test_the_history_goes_on_with_the_losses_of_both_sides() -> None:
    history = run(small_params(**STATEFUL)).history
    assert history["epoch"].to_list() == [1, 2, 3, 4, 5]
    assert history[FURTHER].isna().all(axis=1).to_list() == [True, True, False, False, False]
    assert history.drop(columns=FURTHER).notna().all(axis=None)


def test_mlflow_gets_the_same_points_live_and_from_the_file(tmp_path: Path) -> None:
    rows: list[EpochRow] = []
    result = run(small_params(**STATEFUL), on_epoch=[lambda progress: rows.append(progress.rows[-1])])
    write_csv(tmp_path / "history.csv", result.history)
    stored: list[EpochRow] = [
        {str(key): value for key, value in row.items()}
        for row in pd.read_csv(tmp_path / "history.csv").to_dict("records")
    ]
    live, read = (sorted(point for row in table for point in epoch_points(row)) for table in (rows, stored))
    assert read == live


def test_sharpening_has_batches_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    take_step = Sharpening.take_step

    def counted(self: Sharpening, parts: list[tuple[torch.Tensor, torch.Tensor]], num_images: int) -> StepReport:
        sizes.append(num_images)
        return take_step(self, parts, num_images)

    monkeypatch.setattr(Sharpening, "take_step", counted)
    params = small_params(train__micro_batch_size=4, sharpen__epochs=2, sharpen__batch_size=25)
    run(params)
    assert params.train.batch_size == 8
    assert sizes == [25, 25, 10] * 2


def test_a_batch_of_more_images_than_there_are_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    run(small_params(sharpen__epochs=1, sharpen__batch_size=60))
    assert "sharpen.batch_size" not in caplog.text
    run(small_params(sharpen__epochs=1, sharpen__batch_size=61))
    assert "sharpen.batch_size: 61, but there are only 60 training images" in caplog.text


def test_the_last_epoch_is_kept_although_the_validation_loss_rises() -> None:
    others = ("squared_error", "feature", "colour", "grain")
    only_adversarial = {f"sharpen__{part}_weight": 0.0 for part in others}
    params = small_params(train__epochs=15, sharpen__epochs=3, sharpen__muon_learning_rate=0.1, **only_adversarial)
    last: list[Progress] = []
    result = run(params, on_epoch=[lambda progress: last.append(copy.deepcopy(progress))])
    losses = result.history["validation_loss"]
    assert losses.iloc[15:].min() > losses.iloc[:15].min()
    assert result.summary()["best_validation_loss"] == losses.min()
    for name, weight in result.model.state_dict().items():
        assert torch.equal(weight, last[-1].tensors[f"average.{name}"]), name


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4, 5])
def test_a_stopped_sharpening_continues_to_the_same_bits(stopped_after: int) -> None:
    params = small_params(**STATEFUL)
    seen: dict[int, Progress] = {}
    whole = run(params, on_epoch=[lambda now: seen.update({len(now.rows): copy.deepcopy(now)})])
    called: list[int] = []
    rest = run(params, start=seen[stopped_after], on_epoch=[lambda progress: called.append(len(progress.rows))])
    pd.testing.assert_frame_equal(rest.history, whole.history, check_exact=True)
    assert called == list(range(stopped_after, 6))
    assert len(seen[5].previews) == 5
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, rest.model.state_dict()[name]), name


def test_sharpening_sharpens() -> None:
    """Of images of noise, the mean is grey: only the discriminator asks for grain."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
    params = small_params(train__epochs=4, sharpen__epochs=10, sharpen__squared_error_weight=1.0)
    model = new_model(params.model, 8, 3, seed=0)
    setup = Setup(noise, VALIDATION, params.train, CPU, seed=0)
    train(model, setup)
    latent = encode_all(model, noise).mean
    blurred = sharpness(decode_all(model, latent))
    train_and_sharpen(model, setup, params.sharpen)
    assert sharpness(decode_all(model, latent)) > 3 * blurred


def test_a_step_follows_the_weighted_losses() -> None:
    """The gradients of both sides, by one backward pass each through losses that are written out."""
    sharpening = sharpening_with(sharpen__adversarial_weight=0.3, sharpen__feature_weight=2.0)
    model, discriminator = sharpening.model.train(), sharpening._discriminator
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    twin, rival = copy.deepcopy(model), copy.deepcopy(discriminator)
    images = IMAGES.mean((2, 3), keepdim=True).expand_as(IMAGES) + 0.01 * IMAGES  # with less detail than is decoded
    sharpening.take_step([(images, noise)], 8)
    posterior = twin.eval().encode(images)
    mean, deviation = posterior.mean.detach(), posterior.log_variance.detach().exp().sqrt()
    draws = mean + deviation * noise
    alternating = torch.stack([mean[::2], draws[1::2]], 1).flatten(0, 1)
    centre = draws.sum(0) / 8
    new = [centre + (draws[i] - centre + draws[i + 2] - centre) / 2**0.5 for i in (0, 1)]
    shown = twin.decode(torch.cat([alternating, torch.stack(new)]))
    decoded = shown[:8]
    real, fake = rival(images), rival(shown)
    (yes, yes_too), (no, no_too) = real.logits, fake.logits  # of the two levels
    hinge = functional.relu(1 - yes).mean() / 2 + functional.relu(1 - yes_too).mean() / 2
    hinge = hinge + functional.relu(1 + no).mean() / 2 + functional.relu(1 + no_too).mean() / 2
    fooling = -no.mean() / 2 - no_too.mean() / 2
    (seen, seen_too), (felt, felt_too) = real.features, fake.features
    apart = functional.l1_loss(felt[:8], seen.detach()) / 2 + functional.l1_loss(felt_too[:8], seen_too.detach()) / 2
    pattern = (fine(decoded.sum(0) / 8, 3) - fine(images.sum(0) / 8, 3)).square().mean()
    specks = torch.stack([fine(each - sum(each) / 3, 5) for each in decoded - images]).square().mean()
    errors = functional.mse_loss(decoded, images) + 2 * 8 * pattern
    both = zip(detail_of(decoded), detail_of(images), strict=True)
    grain = torch.stack([(ours - theirs).clamp(min=0).mean() for ours, theirs in both]).mean()
    assert grain.detach() > 1e-4
    loss = 0.3 * fooling + 2.0 * apart + 120 * errors + 200 * specks + 5 * grain
    weights = list(twin.decoder.parameters())
    expected = [*torch.autograd.grad(loss, weights, retain_graph=True)]
    expected += torch.autograd.grad(hinge, list(rival.parameters()))
    found = [weight.grad for weight in [*model.decoder.parameters(), *discriminator.parameters()]]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_new_pictures_latents_have_the_moments_of_the_aggregate_posterior() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 3 + torch.randn(40_000, 2, generator=generator) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]])
    posterior = Posterior(mean, torch.full_like(mean, math.log(0.3)))
    latents = latents_to_judge(posterior, torch.randn(mean.shape, generator=generator))
    assert len(latents) == 50_000
    expected = torch.tensor([[1.3, 0.8], [0.8, 0.64 + 0.25 + 0.3]])
    torch.testing.assert_close(latents[40_000:].mean(0), torch.full((2,), 3.0), rtol=0, atol=0.05)
    torch.testing.assert_close(latents[40_000:].T.cov(), expected, rtol=0, atol=0.05)


def test_reconstructions_are_judged_at_means_and_at_draws() -> None:
    mean, log_variance, noise = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    latents = latents_to_judge(Posterior(mean, log_variance), noise)
    assert torch.equal(latents[:6:2], mean[::2])
    torch.testing.assert_close(latents[1:6:2], (mean + (log_variance / 2).exp() * noise)[1::2])


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_few_images_have_no_new_pictures(num_images: int) -> None:
    latents = latents_to_judge(Posterior(*torch.zeros(2, num_images, 3)), torch.zeros(num_images, 3))
    assert latents.shape == (num_images, 3)


def test_only_what_is_fine_and_shared_is_a_pattern() -> None:
    """The local average of a checkerboard of 32 x 32 is a ninth of its centre, but at the border."""
    shared = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(4, 3, 32, 32)
    assert float(pattern_error(shared)) == pytest.approx(4 * (8 / 9) ** 2, rel=0.05)
    own = shared * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None, None]
    assert float(pattern_error(own)) == pytest.approx(0, abs=1e-6)
    assert float(pattern_error(torch.arange(32.0).expand(4, 3, 32, 32))) < 0.1


def test_only_what_is_fine_and_coloured_is_an_error_of_colour() -> None:
    """The local average of a checkerboard of 32 x 32 is a 25th of its centre, but at the border."""
    grey = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(4, 3, 32, 32)
    red_to_blue = grey * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    assert float(colour_error(red_to_blue)) == pytest.approx(2 / 3 * (24 / 25) ** 2, rel=0.05)
    assert float(colour_error(grey)) == pytest.approx(0, abs=1e-6)
    flat = torch.tensor([1.0, 0.0, -1.0])[:, None, None].expand(4, 3, 32, 32)
    assert float(colour_error(flat)) == pytest.approx(0, abs=1e-6)
    assert float(colour_error(grey[:, :1])) == 0


def test_grain_is_detail_that_the_original_lacks() -> None:
    """Stripes of +-0.1 have second differences of 0.2 in three of four directions, and vanish at half size."""
    flat = torch.full((2, 3, 32, 32), 0.5)
    stripes = flat + 0.1 * (1 - 2 * (torch.arange(32.0) % 2))
    assert float(grain_loss(stripes, flat)) == pytest.approx(
        3 / 8 * (math.sqrt(0.04 + 1e-5) - math.sqrt(1e-5)), rel=1e-4
    )
    assert float(grain_loss(flat, stripes)) == 0
    assert float(grain_loss(1 - stripes, stripes)) == pytest.approx(0, abs=1e-6)
    diagonal = flat + 0.1 * (1 - (torch.arange(32)[:, None] + torch.arange(32)) % 4 // 2 * 2.0)
    for picture in (stripes, stripes.transpose(2, 3), diagonal, diagonal.flip(3)):
        assert float(grain_loss(picture, picture.transpose(2, 3).flip(2))) > 0.01


def test_grain_is_compared_image_by_image_and_place_by_place() -> None:
    """The same sums over explicit squares of 8 x 8 pixels, four pixels apart."""
    noise = 0.3 * torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    left = torch.arange(32) < 16
    decoded = torch.stack([noise[0, 0] * left, noise[0, 1]])
    images = torch.stack([noise[1, 0] * ~left, 0.5 * noise[1, 1]])
    excesses: list[float] = []
    for ours, theirs in zip(decoded, images, strict=True):
        at_scales = []
        for scale in (1, 2):
            size = 32 // scale
            pair = [each.mean(0).reshape(size, scale, size, scale).mean((1, 3)) for each in (ours, theirs)]
            places = []
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                second = [
                    (each.roll((down, right), (0, 1)) + each.roll((-down, -right), (0, 1))) / 2 - each for each in pair
                ]
                inner = [each[1:-1, 1:-1] for each in second]
                starts = range(0, size - 2 - 7, 4)
                for top, start in ((top, start) for top in starts for start in starts):
                    squares = [each[top : top + 8, start : start + 8].square().mean() for each in inner]
                    mine, original = ((square + 1e-5).sqrt() for square in squares)
                    places.append(max(0.0, float(mine - original)))
            at_scales.append(sum(places) / len(places))
        excesses.append(sum(at_scales) / 2)
    assert float(grain_loss(decoded, images)) == pytest.approx(sum(excesses) / 2, rel=1e-4)
    assert min(excesses) > 0.01


@pytest.mark.parametrize("num_images", [1, 4, 64])
def test_independent_noise_counts_alike_in_all_batches(num_images: int) -> None:
    """Without the mean of 9 values, of which it is one, noise of variance 1 has a variance of 8/9."""
    noise = torch.randn(num_images, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(pattern_error(noise)) == pytest.approx(8 / 9, rel=0.05)


def test_a_step_with_a_nan_gradient_changes_nothing() -> None:
    sharpening = sharpening_with(model__normalization="batch")
    assert not take_step(sharpening)
    before = copy.deepcopy(sharpening.tensors())
    assert take_step(sharpening, torch.full_like(IMAGES, math.nan))
    assert all(torch.equal(tensor, before[name]) for name, tensor in sharpening.tensors().items())
    assert not take_step(sharpening)
    assert not torch.equal(
        sharpening.tensors()["model.decoder.features.weight"], before["model.decoder.features.weight"]
    )


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    sharpening = sharpening_with(sharpen__learning_rate=0.2)
    sharpening.steps_per_epoch = 1000
    rates = [sharpening.learning_rate(step) for step in (0, 24, 500, 999)]
    expected = [0.2 / 51, 0.2 * 25 / 51 * math.cos(math.pi * 0.012) ** 2, 0.1, 0.2 * math.sin(math.pi / 2000) ** 2]
    assert rates == pytest.approx(expected)


def test_the_discriminator_learns_twice_as_fast() -> None:
    """Adam's first step moves a bias by its learning rate; a weight's change by Muon has its rate as spectral norm.

    In the middle of the cosine both rates are halved.
    """
    sharpening = sharpening_with(sharpen__learning_rate=0.006, sharpen__muon_learning_rate=0.04)
    sharpening.step = 5  # of 10
    decoder, discriminator = sharpening.model.decoder, sharpening._discriminator
    before = [{name: weight.detach().clone() for name, weight in side.named_parameters()} for side in sharpening._sides]
    take_step(sharpening)
    for factor, side, kept in zip((1, 2), (decoder, discriminator), before, strict=True):
        changes = {name: weight.detach() - kept[name] for name, weight in side.named_parameters()}
        biases = torch.cat([change for change in changes.values() if change.ndim == 1]).abs()
        assert float(biases.max()) == pytest.approx(factor * 0.003, rel=0.01)
        [first, *_] = [change for change in changes.values() if change.ndim > 1]
        fan_out, fan_in = len(first), first[0].numel()
        norm = float(torch.linalg.matrix_norm(first.flatten(1), 2)) / math.sqrt(max(1, fan_out / fan_in))
        assert norm == pytest.approx(factor * 0.02, rel=0.08)


def test_several_processes_cannot_sharpen() -> None:
    with pytest.raises(UserError, match="sharpen.epochs: 3, but 2 processes train together"):
        run(small_params(**STATEFUL), workers=Workers(0, 2))


def test_sharpening_that_explodes_says_what_to_lower() -> None:
    params = small_params(**STATEFUL)
    exploded: list[Progress] = []

    def poison(progress: Progress) -> None:
        tensors = {name: torch.full_like(tensor, math.nan) if name == "best.decoder.features.weight" else tensor
                   for name, tensor in progress.tensors.items()}  # fmt: skip
        exploded.append(replace(progress, tensors=copy.deepcopy(tensors), rows=list(progress.rows)))

    run(params, on_epoch=[poison])
    with pytest.raises(UserError, match=r"lower sharpen\.muon_learning_rate and sharpen\.learning_rate"):
        run(params, start=exploded[1])


def test_the_discriminator_judges_patches_of_every_level() -> None:
    verdict = Discriminator([4, 6, 8], 3)(torch.rand(2, 3, 16, 16))
    assert [tuple(maps.shape) for maps in verdict.features] == [(2, 4, 8, 8), (2, 6, 4, 4), (2, 8, 2, 2)]
    assert [tuple(logit.shape) for logit in verdict.logits] == [(2, 1, 8, 8), (2, 1, 4, 4), (2, 1, 2, 2)]


def test_the_discriminators_layers_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator([8, 16], 3).eval()
    for layer in [*discriminator.levels, *discriminator.heads]:
        assert isinstance(layer, torch.nn.Conv2d)
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1, abs=0.02)


def test_losses_by_hand() -> None:
    real = Verdict([torch.tensor([1.0, 2.0])], [torch.tensor([2.0, 0.5]), torch.tensor([0.0])])
    fake = Verdict([torch.tensor([0.0, 5.0])], [torch.tensor([-2.0, 0.0]), torch.tensor([-0.5])])
    assert float(discriminator_loss(real, fake)) == pytest.approx(((0.25 + 0.5) + (1.0 + 0.5)) / 2)
    assert float(adversarial_loss(fake)) == pytest.approx((1.0 + 0.5) / 2)
    assert float(feature_loss(real, fake)) == pytest.approx((1 + 3) / 2)
