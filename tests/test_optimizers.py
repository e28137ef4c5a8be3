import copy
import subprocess
import sys

import pytest
import torch

from facevae.train.optimizers import Adam


def gradients(network: torch.nn.Module, step: int) -> None:
    """Give every weight a random gradient for this step."""
    generator = torch.Generator().manual_seed(step)
    for weight in network.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_adam_matches_torch(weight_decay: float) -> None:
    network = torch.nn.Linear(5, 3)
    reference = copy.deepcopy(network)
    ours = Adam(network.parameters(), weight_decay=weight_decay)
    theirs = torch.optim.AdamW(reference.parameters(), weight_decay=weight_decay, fused=True)
    for step in range(5):
        learning_rate, beta1 = 0.1 / (step + 1), 0.95 - 0.02 * step
        theirs.param_groups[0].update(lr=learning_rate, betas=(beta1, 0.999))
        for trained in (network, reference):
            gradients(trained, step)
        ours.step(learning_rate, beta1=beta1)
        theirs.step()
    for weight, expected in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_adam_divides_gradients_and_skips_steps() -> None:
    network = torch.nn.Linear(5, 3)
    reference = copy.deepcopy(network)
    ours, divided = Adam(network.parameters()), Adam(reference.parameters())
    for step in range(3):
        gradients(network, step)
        gradients(reference, step)
        for weight in reference.parameters():
            assert weight.grad is not None
            weight.grad *= 4
        ours.step(0.1)
        divided.step(0.1, divisor=torch.tensor(4.0), skip=torch.tensor(False))
    for weight, other in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(weight, other)
    before = copy.deepcopy((network.state_dict(), ours.moments))
    ours.step(0.1, skip=torch.tensor(True))
    torch.testing.assert_close((network.state_dict(), ours.moments), before, rtol=0, atol=0)


def test_a_weight_without_a_gradient_is_refused() -> None:
    network = torch.nn.Linear(5, 3)
    adam = Adam(network.parameters())
    network.weight.sum().backward()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match=r"1 weight\(s\) have no gradient"):
        adam.step(0.1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_adam_does_not_import_the_compiler() -> None:
    script = "\n".join(
        [
            "import sys",
            "import torch",
            "from facevae.train.optimizers import Adam",
            "weight = torch.ones(2, requires_grad=True)",
            "adam = Adam([weight])",
            "weight.sum().backward()",
            "adam.step(0.1)",
            "print(weight[0].item() < 1, 'torch._dynamo' in sys.modules)",
        ]
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "True False"
