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
from facevae.priors import coupling_flow as flow_module
from facevae.priors.coupling_flow import Coupling, Flow, fit_flow
from facevae.priors.fitting import FittedPriors, PriorsHeader, fit_priors, load_priors, save_priors
from facevae.priors.mixture import Mixture, fit_mixture
from facevae.priors.normal import StandardNormal, aggregate_gaussian, mean_log_prob
from facevae.storage.tensors import write_tensors


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


def some_priors() -> FittedPriors:
    return fit_priors(some_posterior(24, 3, 0), some_posterior(8, 3, 1), seed=5)


def bent_flow(latent_dim: int) -> Flow:
    """A flow as if it were trained: its last layers are no longer zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        flow = Flow(latent_dim)
        for coupling in flow.couplings:
            assert isinstance(coupling, Coupling)
            torch.nn.init.normal_(coupling.output.weight, std=0.05)
    flow.mean, flow.factor = aggregate_gaussian(some_posterior(24, latent_dim, 2))
    flow.eval()
    return flow


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
    points, area = grid(12, 300)
    with torch.no_grad():
        density = bent_flow(2).log_prob(points).exp()
    assert float(density.sum()) * area == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("latent_dim", [2, 5, 64])
def test_the_flow_s_inverse_undoes_it_and_its_determinant_is_that_of_the_jacobian(latent_dim: int) -> None:
    flow = bent_flow(latent_dim)
    noise = torch.randn(6, latent_dim, generator=generator())
    latent = flow.from_noise(noise)
    again, log_determinant = flow.to_noise(latent)
    torch.testing.assert_close(again, noise, atol=1e-3, rtol=1e-3)
    jacobian = torch.autograd.functional.jacobian(lambda point: flow.to_noise(point[None])[0][0], latent[0].double())
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1].float(), log_determinant[0], atol=1e-3, rtol=1e-3)
    expected = multivariate_normal(np.zeros(latent_dim)).logpdf(noise.numpy()) + log_determinant.detach().numpy()
    np.testing.assert_allclose(flow.log_prob(flow.sample(6, generator())).detach().numpy(), expected, rtol=1e-3)


def test_an_untrained_flow_is_the_gaussian_of_the_aggregate_posterior() -> None:
    train = some_posterior(50, 4, 0)
    flow = Flow(4)
    flow.mean, flow.factor = aggregate_gaussian(train)
    latent = torch.cat([train.sample(generator(i)) for i in range(4000)]).numpy()
    gaussian = multivariate_normal(latent.mean(0), np.cov(latent.T))
    np.testing.assert_allclose(flow.log_prob(train.mean).detach().numpy(), gaussian.logpdf(train.mean), atol=0.05)


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
    flow = fit_flow(banana(500, 0), heldout, seed=0)
    gaussian = multivariate_normal(*(x.numpy() for x in (heldout.mean(0), heldout.T.cov())))
    assert mean_log_prob(flow, heldout) > gaussian.logpdf(heldout.numpy()).mean() + 0.5


def test_the_flow_s_weights_are_those_of_its_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    measure = flow_module._mean_log_prob

    def record(flow: Flow, latent: Tensor) -> float:
        seen.append(measure(flow, latent))
        return seen[-1]

    monkeypatch.setattr(flow_module, "_mean_log_prob", record)
    heldout = banana(50, 1).sample(generator())
    fitted = fit_flow(banana(30, 0), heldout, seed=0)
    assert mean_log_prob(fitted, heldout) == max(seen) > seen[-1]


def test_the_best_prior_is_that_of_the_highest_heldout_nats() -> None:
    train, validation = clusters(100, 0), clusters(50, 1)
    fitted = fit_priors(train, validation, seed=3)
    heldout = validation.sample(generator(3))
    assert list(fitted.priors) == list(fitted.heldout_nats) == ["normal", "mixture", "flow"]
    for name, prior in fitted.priors.items():
        assert fitted.heldout_nats[name] == mean_log_prob(prior, heldout)
    assert fitted.heldout_nats[fitted.best] == max(fitted.heldout_nats.values())
    assert fitted.best != "normal"


def test_the_same_seed_gives_the_same_priors_and_leaves_the_global_generator_alone() -> None:
    state, num_threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = some_priors()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == num_threads
    torch.rand(3)
    second = some_priors()
    assert first.heldout_nats == second.heldout_nats
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
    assert loaded.heldout_nats == fitted.heldout_nats
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
        content.replace(b"flow.c", b"flow.d"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="priors.safetensors"):
            load_priors(path, fingerprint="a")
    write_tensors(path, {"other": torch.zeros(1)}, PriorsHeader(fingerprint="a", heldout_nats={}))
    with pytest.raises(UserError, match="holds no priors"):
        load_priors(path, fingerprint="a")


@pytest.mark.parametrize(("num_images", "latent_dim"), [(24, 64), (24, 3), (24, 2), (3, 5), (1, 2)])
def test_few_images_will_do(num_images: int, latent_dim: int) -> None:
    fitted = fit_priors(some_posterior(num_images, latent_dim, 0), some_posterior(8, latent_dim, 1), seed=0)
    for name, prior in fitted.priors.items():
        assert np.isfinite(fitted.heldout_nats[name])
        assert prior.sample(10, generator()).isfinite().all()
        assert prior.log_prob(prior.sample(10, generator())).isfinite().all()


def test_constant_dimensions_will_do() -> None:
    means = torch.full((24, 4), 5.0)
    fitted = fit_priors(posterior_at(means, 2e-9), posterior_at(means[:8], 2e-9), seed=0)
    assert fitted.best != "normal"
    assert all(np.isfinite(nats) for nats in fitted.heldout_nats.values())
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
            "fitting.fit_priors(posterior, posterior, seed=0)",
        ]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "{1}"
