"""Adam with PyTorch's fused kernel, but without its class.

Creating any torch.optim optimiser imports PyTorch's compiler, which takes four seconds at the start of a stage. The
function behind the class does not, and it takes clipping and skipping as plain arguments.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam (arXiv 1412.6980), or AdamW (arXiv 1711.05101) if there is a weight decay.

    Attributes
    ----------
    weights
        The tensors to optimise.
    moments
        For each weight, under PyTorch's names: the running means "exp_avg" and "exp_avg_sq" of its shape, and the
        number of steps "step".
    """

    def __init__(self, weights: Iterable[Tensor], *, weight_decay: float = 0.0) -> None:
        self.weights = list(weights)
        self.weight_decay = weight_decay
        self.moments = [
            {
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
                "step": torch.zeros((), device=weight.device),
            }
            for weight in self.weights
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(
        self,
        learning_rate: float,
        *,
        beta1: float = 0.9,
        divisor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Update the weights from their gradients.

        Parameters
        ----------
        learning_rate, beta1
            Of this step.
        divisor
            All gradients are divided by it: a single number on the device of the weights.
        skip
            Whether to leave weights and moments as they are: a single boolean on that device.

        Raises
        ------
        RuntimeError
            A weight has no gradient.
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        if len(gradients) < len(self.weights):
            raise RuntimeError(f"{len(self.weights) - len(gradients)} weight(s) have no gradient")
        adam(
            self.weights,
            gradients,
            [moments["exp_avg"] for moments in self.moments],
            [moments["exp_avg_sq"] for moments in self.moments],
            [],
            [moments["step"] for moments in self.moments],
            fused=True,
            grad_scale=divisor,
            found_inf=None if skip is None else skip.float(),
            decoupled_weight_decay=True,
            amsgrad=False,
            lr=learning_rate,
            beta1=beta1,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self.weight_decay,
            maximize=False,
        )
