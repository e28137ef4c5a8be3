import copy
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from facevae.train.muon import Muon, orthogonalized

SHAPES = [(3, 5, 5), (2, 4, 64), (1, 32, 33)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def polar_factor(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    factor: Tensor = (left @ right).float()
    return factor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 4, stride=2),
        nn.Flatten(),
        nn.Linear(8, 70),
    )
    return nn.Sequential(*layers)


def gradients(weights: Sequence[Tensor], step: int) -> None:
    generator = seeded(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).contiguous(
            memory_format=torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalized_is_near_the_polar_factor(shape: tuple[int, int, int]) -> None:
    """Singular values from 1 down to 1 / 300 become 1 within 7 %, and their vectors stay."""
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=seeded(0)), full_matrices=False)
    matrices = left @ torch.diag_embed(torch.logspace(0, -2.4, shape[1]).expand(shape[:2])) @ right
    found = orthogonalized(matrices)
    assert (torch.linalg.svdvals(found) - 1).abs().max() < 0.07
    for matrix, orthogonal in zip(matrices, found, strict=True):
        assert torch.linalg.matrix_norm(orthogonal - polar_factor(matrix), 2) < 0.07


def test_orthogonalized_ignores_the_scale() -> None:
    matrices = torch.randn(2, 4, 9, generator=seeded(0))
    expected = orthogonalized(matrices)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(orthogonalized(scale * matrices), expected)
    assert not orthogonalized(torch.zeros(1, 3, 5)).any()


def test_a_lost_rank_stays_lost() -> None:
    matrices = torch.randn(1, 8, 2, generator=seeded(0)) @ torch.randn(1, 2, 20, generator=seeded(1))
    values = torch.linalg.svdvals(orthogonalized(matrices))[0]
    assert (values[:2] - 1).abs().max() < 0.07
    assert values[2:].max() < 1e-3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_follows_its_formula(memory_format: torch.memory_format) -> None:
    """Compare with Nesterov momentum and the SVD, on matrices of (first axis, rest)."""
    model = network().to(memory_format=memory_format)
    muon = Muon(model, momentum=0.9)
    factors = [1.0, 2**0.5 * 2, (70 / 8) ** 0.5]  # of 27 -> 4, 4 -> 2 * 16, 8 -> 70
    expected = [weight.detach().clone() for weight in muon.weights]
    means = [torch.zeros_like(weight) for weight in expected]
    assert [weight.shape for weight in expected] == [(4, 3, 3, 3), (4, 2, 4, 4), (70, 8)]
    for step in range(4):
        gradients(muon.weights, step)
        muon.step(0.1)
        for index, weight in enumerate(muon.weights):
            assert weight.grad is not None
            means[index] = 0.9 * means[index] + 0.1 * weight.grad
            direction = 0.9 * means[index] + 0.1 * weight.grad
            expected[index] -= 0.1 * factors[index] * polar_factor(direction.flatten(1)).view_as(weight)
            change = torch.linalg.matrix_norm((weight - expected[index]).detach().flatten(1), 2)
            assert change < 0.07 * 0.1 * factors[index] * (step + 1)


def test_muon_divides_gradients_and_skips_steps() -> None:
    model = network()
    reference = copy.deepcopy(model)
    ours, divided = Muon(model, momentum=0.9), Muon(reference, momentum=0.9)
    for step in range(3):
        gradients(ours.weights, step)
        gradients(divided.weights, step)
        for weight in divided.weights:
            assert weight.grad is not None
            weight.grad *= 4
        ours.step(0.1)
        divided.step(0.1, divisor=torch.tensor(4.0), skip=torch.tensor(False))
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)
    before = copy.deepcopy((model.state_dict(), ours.moments))
    for weight in ours.weights:
        assert weight.grad is not None
        weight.grad.fill_(float("nan"))
    ours.step(0.1, skip=torch.tensor(True))
    torch.testing.assert_close((model.state_dict(), ours.moments), before, rtol=0, atol=0)


def test_a_weight_without_a_gradient_is_refused() -> None:
    muon = Muon(network(), momentum=0.9)
    with pytest.raises(RuntimeError, match=r"3 weight\(s\) have no gradient"):
        muon.step(0.1)


def test_muon_does_not_import_the_compiler() -> None:
    script = "\n".join(
        [
            "import sys",
            "import torch",
            "from facevae.train.muon import Muon",
            "model = torch.nn.Linear(2, 3)",
            "muon = Muon(model, momentum=0.9)",
            "model(torch.ones(1, 2)).sum().backward()",
            "muon.step(0.1)",
            "print('torch._dynamo' in sys.modules)",
        ]
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
