import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from facevae.errors import UserError
from facevae.model.vae import Posterior
from facevae.priors import flow_fitting, flow_matching
from facevae.priors import velocity as velocity_module
from facevae.priors.comparison import NUM_SETS, PriorScores, compare_priors
from facevae.priors.copies import copied_share
from facevae.priors.fitting import FittedPriors, PriorsHeader, fit_priors, load_priors, save_priors
from facevae.priors.flow_fitting import fit_flow_matching
from facevae.priors.flow_matching import FlowMatching
from facevae.priors.mixture import Mixture, fit_mixture
from facevae.priors.normal import StandardNormal, aggregate_gaussian, mean_log_prob
from facevae.priors.velocity import Velocity
from facevae.storage.tensors import write_tensors

NO_LABELS = torch.zeros(1, 1, dtype=torch.int8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network, so that fits and densities take little time."""
    monkeypatch.setattr(velocity_module, "WIDTH", 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior_at(means: Tensor, variance: float = 0.01) -> Posterior:
    return Posterior(means, torch.full_like(means, np.log(variance)))


def banana(num_images: int, seed: int) -> Posterior:
    x, y = torch.randn(2, num_images, generator=generator(seed))
    return posterior_at(torch.stack([x, x.square() + 0.3 * y], 1))


def clusters(num_images: int, seed: int) -> Posterior:
    centres = torch.tensor([[-3.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
    noise = 0.5 * torch.randn(num_images, 3, generator=generator(seed))
    return posterior_at(centres[torch.arange(num_images) % 2] + noise)


def some_posterior(num_images: int, latent_dim: int, seed: int) -> Posterior:
    """The last dimension has collapsed onto N(0, 1)."""
    means = torch.randn(num_images, latent_dim, generator=generator(seed))
    means[:, -1] = 0
    log_variance = torch.full_like(means, -2.0)
    log_variance[:, -1] = 0
    return Posterior(means, log_variance)


def labels_of(num_images: int) -> Tensor:
    """One attribute, which every other image has."""
    return (2 * (torch.arange(num_images) % 2) - 1)[:, None].float()


def fitted_to(train: Posterior, validation: Posterior, *, seed: int) -> FittedPriors:
    """Priors that are compared by the mean of their samples, as a distance to 0."""

    def distance(latent: Tensor) -> float:
        return float(latent.mean(0).norm())

    return fit_priors(train, validation, labels_of(len(train.mean)), ("Odd",), distance, num_samples=50, seed=seed)


def some_priors() -> FittedPriors:
    return fitted_to(some_posterior(24, 3, 0), some_posterior(8, 3, 1), seed=5)


def some_flow(latent_dim: int, spread: float = 0.1) -> FlowMatching:
    """A flow as if it were trained: its last weights are no longer zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        velocity = Velocity(latent_dim, 1)
        for layer in (velocity.scale, velocity.first_output, velocity.second_output):
            torch.nn.init.normal_(layer.weight, std=spread)
    velocity.requires_grad_(False).eval()
    return FlowMatching(velocity, *aggregate_gaussian(some_posterior(24, latent_dim, 2)), ("Odd",), NO_LABELS)


def grid(limit: float, num_points: int) -> tuple[Tensor, float]:
    """Points of a square around 0, and the area of each."""
    axis = torch.linspace(-limit, limit, num_points)
    return torch.cartesian_prod(axis, axis), (2 * limit / (num_points - 1)) ** 2


def test_the_normal_has_scipy_s_density() -> None:
    latent = torch.randn(20, 5, generator=generator())
    expected = multivariate_normal(np.zeros(5)).logpdf(latent.numpy())
    np.testing.assert_allclose(StandardNormal(5).log_prob(latent).numpy(), expected, rtol=1e-5)


def test_the_normal_s_samples_have_its_moments() -> None:
    samples = StandardNormal(3).sample(100_000, generator())
    torch.testing.assert_close(samples.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(samples.T.cov(), torch.eye(3), atol=0.03, rtol=0)


def some_mixture() -> Mixture:
    factors = torch.tensor([[[1.0, 0.0], [0.5, 0.3]], [[0.2, 0.0], [-0.4, 2.0]]], dtype=torch.float64)
    means = torch.tensor([[1.0, -1.0], [-2.0, 0.5]], dtype=torch.float64)
    return Mixture(torch.tensor([0.3, 0.7], dtype=torch.float64), means, factors)


def test_the_mixture_has_scipy_s_density() -> None:
    mixture, latent = some_mixture(), torch.randn(20, 2, generator=generator())
    parts = [part.numpy() for part in (mixture.weights, mixture.means, mixture.factors)]
    densities = [
        weight * multivariate_normal(mean, factor @ factor.T).pdf(latent.numpy())
        for weight, mean, factor in zip(*parts, strict=True)
    ]
    np.testing.assert_allclose(mixture.log_prob(latent).numpy(), np.log(sum(densities)), rtol=1e-4)


def test_the_mixture_s_samples_have_its_moments() -> None:
    mixture = some_mixture()
    samples = mixture.sample(100_000, generator()).double()
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    second = mixture.factors @ mixture.factors.mT + mixture.means[:, :, None] * mixture.means[:, None]
    covariance = (mixture.weights[:, None, None] * second).sum(0) - torch.outer(mean, mean)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.T.cov(), covariance, atol=0.05, rtol=0)


def test_the_flow_s_density_integrates_to_one() -> None:
    points, area = grid(10, 80)
    assert float(some_flow(2, spread=0.05).log_prob(points).exp().sum()) * area == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_the_flow_s_divergence_is_the_trace_of_its_jacobian(latent_dim: int) -> None:
    velocity = some_flow(latent_dim, spread=1.0).velocity.double()
    latent = torch.randn(4, latent_dim, generator=generator()).double()
    time, labels = torch.tensor([[0.3]]).double(), torch.tensor([[-1.0]]).double()
    values, divergences = velocity.with_divergence(latent, time, labels)
    torch.testing.assert_close(values, velocity(latent, time, labels))
    for point, divergence in zip(latent, divergences, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda at: velocity(at[None], time, labels)[0], point)
        torch.testing.assert_close(divergence, jacobian.trace())


def test_the_flow_s_density_is_that_of_a_change_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The independent way: a Jacobian by finite differences of the whole map from noise to a latent."""
    monkeypatch.setattr(flow_matching, "NUM_STEPS", 200)  # so that the two integrals agree
    monkeypatch.setattr(flow_matching, "NUM_DENSITY_STEPS", 50)
    flow = some_flow(3)
    step = 0.01 * torch.eye(3)
    for noise in torch.randn(4, 3, generator=generator()):
        ahead, behind = (flow.given().from_noise(noise + shift).double() for shift in (step, -step))
        log_determinant = float(torch.linalg.slogdet((ahead - behind) / 0.02)[1])
        expected = multivariate_normal(np.zeros(3)).logpdf(noise.numpy()) - log_determinant
        assert float(flow.log_prob(flow.given().from_noise(noise[None]))) == pytest.approx(expected, abs=0.005)


def test_flow_density_error_is_of_fourth_order(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = some_flow(3, spread=0.5)
    # The fast waves of time would need far more steps
    torch.nn.init.zeros_(flow.velocity.condition.get_parameter("0.weight"))
    latent = flow.sample(50, generator())
    densities = {}
    for num_steps in (5, 10, 40):
        monkeypatch.setattr(flow_matching, "NUM_DENSITY_STEPS", num_steps)
        densities[num_steps] = flow.log_prob(latent)
    coarse, fine = (float((densities[steps] - densities[40]).abs().mean()) for steps in (5, 10))
    assert fine < coarse / 10


def test_an_untrained_flow_is_the_gaussian_of_the_aggregate_posterior() -> None:
    train = some_posterior(50, 4, 0)
    flow = FlowMatching(Velocity(4, 0), *aggregate_gaussian(train), (), NO_LABELS[:, :0])
    latent = torch.cat([train.sample(generator(i)) for i in range(4000)]).numpy()
    gaussian = multivariate_normal(latent.mean(0), np.cov(latent.T))
    np.testing.assert_allclose(flow.log_prob(train.mean).numpy(), gaussian.logpdf(train.mean), atol=0.05)


def test_the_density_of_a_linear_velocity_is_the_known_gaussian() -> None:
    """Velocity c x takes N(0, I) to N(0, e^2c I); the mean and the factor then shift and stretch it."""
    velocity = Velocity(3, 0)
    torch.nn.init.constant_(velocity.scale.bias, 0.7)
    mean, factor = aggregate_gaussian(some_posterior(24, 3, 2))
    flow = FlowMatching(velocity, mean, factor, (), NO_LABELS[:, :0])
    latent = flow.sample(20, generator())
    gaussian = multivariate_normal(mean.numpy(), np.exp(1.4) * (factor @ factor.T).numpy())
    np.testing.assert_allclose(flow.log_prob(latent).numpy(), gaussian.logpdf(latent.numpy()), atol=1e-3)


def test_the_mixture_finds_the_clusters() -> None:
    heldout = clusters(200, 1).sample(generator())
    mixture = fit_mixture(clusters(400, 0), heldout, seed=0)
    left = mixture.weights[mixture.means[:, 0] < 0].sum()
    assert float(left) == pytest.approx(0.5, abs=0.02)
    truth = Mixture(
        torch.full((2,), 0.5, dtype=torch.float64),
        torch.tensor([[-3.0, 0.0, 0.0], [3.0, 0.0, 1.0]], dtype=torch.float64),
        0.26**0.5 * torch.eye(3, dtype=torch.float64).repeat(2, 1, 1),
    )
    assert mean_log_prob(mixture, heldout) > mean_log_prob(truth, heldout) - 0.2
    assert mean_log_prob(mixture, heldout) > mean_log_prob(StandardNormal(3), heldout) + 1


def test_the_mixture_is_of_draws_and_not_of_means() -> None:
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    train = posterior_at(centres[torch.arange(400) % 2], 1.0)
    heldout = train.sample(generator(1))
    mixture = fit_mixture(train, heldout, seed=0)
    eye = torch.eye(2, dtype=torch.float64)
    truth = Mixture(eye.new_full((2,), 0.5), centres.double(), eye.repeat(2, 1, 1))
    assert mean_log_prob(mixture, heldout) > mean_log_prob(truth, heldout) - 0.1


def test_one_gaussian_stays_one() -> None:
    heldout = some_posterior(300, 6, 1).sample(generator())
    mixture = fit_mixture(some_posterior(300, 6, 0), heldout, seed=0)
    assert len(mixture.weights) == 1


def test_the_flow_bends_where_one_gaussian_cannot() -> None:
    heldout = banana(200, 1).sample(generator())
    flow = fit_flow_matching(banana(500, 0), heldout, labels_of(500), ("Odd",), seed=0)
    gaussian = multivariate_normal(*(x.numpy() for x in (heldout.mean(0), heldout.T.cov())))
    assert mean_log_prob(flow, heldout) > gaussian.logpdf(heldout.numpy()).mean() + 0.4


def test_labels_choose_where_the_flow_draws() -> None:
    """The two clusters are the images with and without the attribute."""
    flow = fit_flow_matching(clusters(400, 0), clusters(100, 1).sample(generator()), labels_of(400), ("Odd",), seed=0)
    right = flow.given(present=["Odd"]).sample(200, generator())[:, 0]
    left = flow.given(absent=["Odd"]).sample(200, generator())[:, 0]
    assert float((right > 0).float().mean()) > 0.95
    assert float((left < 0).float().mean()) > 0.95
    assert float((flow.sample(200, generator())[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.15)


def test_the_flow_draws_with_the_labels_of_training_images() -> None:
    """Three of four images are of the right cluster, so three of four draws are."""
    train = clusters(400, 0)
    images = torch.arange(400)[(torch.arange(400) % 2 == 1) | (torch.arange(400) % 6 == 0)]
    some = Posterior(train.mean[images], train.log_variance[images])
    flow = fit_flow_matching(some, clusters(100, 1).sample(generator()), labels_of(400)[images], ("Odd",), seed=0)
    assert sorted(flow.examples.flatten().tolist()) == [-1] * 67 + [1] * 200
    assert float((flow.sample(400, generator())[:, 0] > 0).float().mean()) == pytest.approx(0.75, abs=0.07)
    left = dataclasses.replace(flow, examples=-torch.ones(1, 1, dtype=torch.int8))
    assert float((left.sample(200, generator())[:, 0] < 0).float().mean()) > 0.95


def test_attributes_that_the_flow_does_not_know_are_refused() -> None:
    flow = some_flow(2)
    with pytest.raises(UserError, match="unknown attribute 'Even'. Known attributes: Odd"):
        flow.given(["Even"])
    with pytest.raises(UserError, match="Odd is both present and absent"):
        flow.given(["Odd"], ["Odd"])


def test_a_low_temperature_draws_near_the_centre() -> None:
    for prior in (StandardNormal(4), some_mixture(), some_flow(4)):
        spread = [prior.sample(500, generator(), temperature=t).std(0).prod() for t in (1.0, 0.5)]
        assert spread[1] < 0.8 * spread[0]
    for cold in (StandardNormal(4), some_flow(4)):
        samples = cold.sample(3, generator(), temperature=0.0)
        torch.testing.assert_close(samples, samples[:1].expand(3, -1))


def test_the_flow_s_weights_are_those_of_its_best_check(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    measure = flow_fitting._check

    def record(velocity: Velocity, example: flow_fitting.Example) -> float:
        seen.append(measure(velocity, example))
        return seen[-1]

    monkeypatch.setattr(flow_fitting, "_check", record)
    monkeypatch.setattr(flow_fitting, "MAX_EPOCHS", 10_000)
    heldout = banana(50, 1).sample(generator())
    fit_flow_matching(banana(8, 0), heldout, labels_of(8), ("Odd",), seed=0)
    assert min(seen) < seen[-1]
    assert seen.index(min(seen)) == len(seen) - 1 - flow_fitting.PATIENCE


def test_copies_are_recognised() -> None:
    train, validation = some_posterior(300, 6, 0), some_posterior(200, 6, 1)
    heldout = validation.sample(generator(1))
    assert copied_share(train.mean[:100], heldout, train.mean) == 1
    assert copied_share(some_posterior(200, 6, 2).sample(generator(2)), heldout, train.mean) < 0.15


def test_the_best_prior_is_the_one_nearest_to_validation_images_that_does_not_copy() -> None:
    fitted = fitted_to(clusters(100, 0), clusters(50, 1), seed=3)
    heldout = clusters(50, 1).sample(generator(3))
    assert list(fitted.priors) == list(fitted.scores) == ["normal", "mixture", "flow"]
    for name, prior in fitted.priors.items():
        samples = prior.sample(50, generator(3))
        assert fitted.scores[name].heldout_nats == mean_log_prob(prior, heldout)
        assert fitted.scores[name].copied_share == copied_share(samples, heldout, clusters(100, 0).mean)
    cases = [((3.0, 2.0, 1.0), (0.0, 0.0, 0.0), "flow"), ((3.0, 2.0, 1.0), (0.0, 0.0, 0.9), "mixture"),
             ((3.0, 2.0, 1.0), (1.0, 0.9, 0.9), "normal"), ((1.0, 2.0, 3.0), (0.0, 0.0, 0.0), "normal")]  # fmt: skip
    for distances, shares, best in cases:
        scores = {
            name: PriorScores(heldout_nats=0.0, validation_frechet_distance=distance, copied_share=share)
            for name, distance, share in zip(fitted.priors, distances, shares, strict=True)
        }
        assert dataclasses.replace(fitted, scores=scores).best == best


@dataclasses.dataclass(frozen=True)
class Around(StandardNormal):
    """Samples around a number, all alike but for their noise."""

    centre: float

    def sample(self, num_samples: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        return self.centre + super().sample(num_samples, generator, temperature=temperature)


@pytest.mark.parametrize(("centres", "num_sets"), [((10, 12, 30), (NUM_SETS, NUM_SETS, 1)), ((10, 20, 30), (1, 1, 1))])
def test_priors_that_are_close_are_compared_by_several_sets_of_samples(
    centres: tuple[float, ...], num_sets: tuple[int, ...]
) -> None:
    priors = dict(zip("abc", (Around(2, centre) for centre in centres), strict=True))
    latents = torch.randn(5, 2, generator=generator())
    scores = compare_priors(
        priors, latents, latents, lambda drawn: float(drawn.mean()), num_samples=50, temperature=0.1, seed=7
    )
    for name, centre, count in zip(priors, centres, num_sets, strict=True):
        draws, source = 0.0, generator(7)
        for _ in range(count):
            draws += float(torch.randn(50, 2, generator=source).mean()) / count
        assert scores[name].validation_frechet_distance == pytest.approx(centre + 0.1 * draws, abs=1e-4)


def test_the_same_seed_gives_the_same_priors_and_leaves_the_global_generator_alone() -> None:
    state, num_threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = some_priors()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == num_threads
    torch.rand(3)
    second = some_priors()
    assert first.scores == second.scores
    for name, prior in first.priors.items():
        samples = prior.sample(7, generator(4))
        assert samples.shape == (7, 3)
        assert samples.dtype == torch.float32
        assert torch.equal(samples, second.priors[name].sample(7, generator(4)))
        assert not torch.equal(samples, prior.sample(7, generator(5)))


def test_priors_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path, other = tmp_path / "priors.safetensors", tmp_path / "other.safetensors"
    fitted = some_priors()
    save_priors(path, fitted, fingerprint="a")
    state = torch.random.get_rng_state()
    loaded = load_priors(path, fingerprint="a")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.scores == fitted.scores
    latent = torch.randn(9, 3, generator=generator())
    for name, prior in fitted.priors.items():
        assert torch.equal(loaded.priors[name].log_prob(latent), prior.log_prob(latent))
        assert torch.equal(loaded.priors[name].sample(9, generator()), prior.sample(9, generator()))
    save_priors(other, loaded, fingerprint="a")
    assert path.read_bytes() == other.read_bytes()


def test_the_priors_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "priors.safetensors"
    save_priors(path, some_priors(), fingerprint="a")
    with pytest.raises(UserError, match="belongs to another model"):
        load_priors(path, fingerprint="b")


def test_what_holds_no_priors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "priors.safetensors"
    with pytest.raises(UserError, match="is missing"):
        load_priors(path, fingerprint="a")
    save_priors(path, some_priors(), fingerprint="a")
    content = path.read_bytes()
    for damaged in (
        content[:-50],
        content.replace(b"mixture.means", b"mixture.meanz"),
        content.replace(b"velocity.f", b"velocity.g"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="priors.safetensors"):
            load_priors(path, fingerprint="a")
    write_tensors(path, {"other": torch.zeros(1)}, PriorsHeader(fingerprint="a", attributes=(), scores={}))
    with pytest.raises(UserError, match="holds no priors"):
        load_priors(path, fingerprint="a")


@pytest.mark.parametrize(("num_images", "latent_dim"), [(24, 64), (24, 3), (24, 2), (3, 5), (1, 2)])
def test_few_images_will_do(num_images: int, latent_dim: int) -> None:
    fitted = fitted_to(some_posterior(num_images, latent_dim, 0), some_posterior(8, latent_dim, 1), seed=0)
    for name, prior in fitted.priors.items():
        assert np.isfinite(fitted.scores[name].heldout_nats)
        assert prior.sample(10, generator()).isfinite().all()
        assert prior.log_prob(prior.sample(10, generator())).isfinite().all()


def test_constant_dimensions_will_do() -> None:
    means = torch.full((24, 4), 5.0)
    fitted = fitted_to(posterior_at(means, 2e-9), posterior_at(means[:8], 2e-9), seed=0)
    assert all(np.isfinite(scores.heldout_nats) for scores in fitted.scores.values())
    torch.testing.assert_close(fitted.mixture.sample(10, generator()), means[:10], atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.flow.sample(10, generator()), means[:10], atol=0.01, rtol=0)


def test_many_images_are_fitted_on_a_share_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facevae.priors.mixture.MAX_DRAWS", 300)
    heldout = clusters(200, 1).sample(generator())
    mixture = fit_mixture(clusters(400, 0), heldout, seed=0)
    assert len(mixture.weights) > 1
    assert mean_log_prob(mixture, heldout) > mean_log_prob(StandardNormal(3), heldout) + 1


def test_a_mixture_that_has_not_converged_is_judged_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facevae.priors.mixture.MAX_ITERATIONS", 1)
    heldout = clusters(200, 1).sample(generator())
    mixture = fit_mixture(clusters(400, 0), heldout, seed=0)
    assert mean_log_prob(mixture, heldout) > mean_log_prob(StandardNormal(3), heldout)


def test_the_mixture_is_fitted_by_one_thread() -> None:
    """In a new interpreter, which has not yet loaded the libraries that have thread pools of their own."""
    script = "\n".join(
        [
            "import torch",
            "from facevae.priors import fitting, mixture",
            "from facevae.model.vae import Posterior",
            "def tell(*_):",
            "    import sklearn.mixture",
            "    from threadpoolctl import threadpool_info",
            "    print({pool['num_threads'] for pool in threadpool_info()})",
            "    raise SystemExit",
            "mixture._expectation_maximization = tell",
            "posterior = Posterior(torch.randn(40, 3), torch.zeros(40, 3))",
            "fitting.fit_priors(posterior, posterior, torch.zeros(40, 0), (), float, num_samples=1, seed=0)",
        ]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "{1}"
