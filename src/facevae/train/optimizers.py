"""Adam by PyTorch's fused kernel, without its class.

Any optimiser of torch.optim imports PyTorch's compiler when it is made: four seconds at the start of each stage that
trains something. The function below that class does not, and takes clipping and skipping as plain arguments.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam (arXiv 1412.6980), or AdamW (arXiv 1711.05101) where a weight decay is given.

    Attributes
    ----------
    weights
        What is optimised.
    moments
        For each weight its running means "exp_avg" and "exp_avg_sq", of its shape, and the number of its steps
        "step", under PyTorch's names.
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
        """Update the weights by their gradients.

        Parameters
        ----------
        learning_rate, beta1
            Those of this step.
        divisor
            Of all gradients, a single number on the device of the weights.
        skip
            Whether to leave everything as it is, likewise.

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
