"""Muon: steps along the orthogonalised momentum of each weight (Jordan 2024, kellerjordan.github.io/posts/muon).

`torch.optim.Muon` takes only matrices, and creating it imports PyTorch's compiler.
"""

import math

import torch
from torch import Tensor, nn

# x ** -0.5 is the sum of weight / (x + shift), within 7 % for 1e-5 <= x <= 1
SHIFTS = (2.22685945e-05, 3.16227766e-03, 4.49062916e-01)
WEIGHTS = (8.61034e-03, 8.550606e-02, 1.22272203)
TINY = torch.finfo(torch.float32).tiny


class Muon:
    """Muon with Nesterov momentum for all weights of a model with two or more dimensions.

    Attributes
    ----------
    weights
        The tensors to optimise.
    moments
        For each weight its "momentum", the running mean of its gradients, of its shape.
    """

    def __init__(self, model: nn.Module, *, momentum: float) -> None:
        self._momentum = momentum
        self._factors: list[float] = []
        self.weights: list[Tensor] = []
        self._batches: dict[tuple[int, ...], list[int]] = {}  # indices of the weights that share a matrix's shape
        for module in model.modules():
            for weight in module.parameters(recurse=False):
                if weight.ndim >= 2:
                    shape = len(weight), weight[0].numel()
                    self._batches.setdefault(tuple(sorted(shape)), []).append(len(self.weights))
                    self.weights.append(weight)
                    fan_in, fan_out = shape if isinstance(module, nn.ConvTranspose2d) else shape[::-1]
                    self._factors.append(math.sqrt(max(1, fan_out / fan_in)))  # as in Jordan's implementation
        self.moments = [{"momentum": torch.zeros_like(weight)} for weight in self.weights]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float, *, divisor: Tensor | None = None, skip: Tensor | None = None) -> None:
        """Update the weights from their gradients.

        Parameters
        ----------
        learning_rate
            The spectral norm of each weight's change, before the factor for its shape.
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
        length = self.weights[0].new_tensor(-learning_rate)
        if skip is not None:
            length = length * ~skip
        for shape, indices in self._batches.items():
            directions = self.weights[0].new_empty(len(indices), *shape)
            for index, direction in zip(indices, directions, strict=True):
                self._look_ahead(index, gradients[index], divisor, skip, target=direction)
            for index, update in zip(indices, orthogonalized(directions), strict=True):
                weight = self.weights[index]
                weight.addcmul_(_in_shape_of(weight, update), length, value=self._factors[index])

    def _look_ahead(
        self, index: int, gradient: Tensor, divisor: Tensor | None, skip: Tensor | None, *, target: Tensor
    ) -> None:
        """Update a weight's momentum and write the direction of its step to `target` (short, long)."""
        momentum = self.moments[index]["momentum"]
        if divisor is not None:
            gradient = gradient / divisor
        if skip is not None:
            gradient = torch.where(skip, momentum, gradient)  # leaves the mean as it is
        momentum.lerp_(gradient, 1 - self._momentum)
        torch.lerp(gradient, momentum, self._momentum, out=_in_shape_of(self.weights[index], target))


def orthogonalized(matrices: Tensor) -> Tensor:
    """The polar factors of matrices (batch, short, long): all singular values become 1, within 7 %.

    Singular values below 1 / 300 of the largest become smaller. The inverse square root of the Gram matrix is a sum of
    shifted inverses (Hale, Higham and Trefethen 2008, SIAM J. Numer. Anal. 46, 2505), which takes fewer operations than
    the usual Newton-Schulz iterations: it multiplies the long matrices only twice.
    """
    gram = matrices @ matrices.mT  # (batch, short, short)
    scale = gram.abs().amax((1, 2), keepdim=True).clamp(min=TINY)  # first, or the norm might overflow
    gram = gram / scale
    bound = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1)  # of the largest eigenvalue
    gram = gram / bound
    root = torch.zeros_like(gram)
    for shift, weight in zip(SHIFTS, WEIGHTS, strict=True):
        shifted = gram.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(shift)
        root.add_(torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted)[0]), alpha=weight)
    factors: Tensor = (root * scale.rsqrt() * bound.rsqrt()) @ matrices
    return factors


def _in_shape_of(weight: Tensor, matrix: Tensor) -> Tensor:
    """View a matrix (short, long) as a weight: its first axis by all others, in their order in memory."""
    rows = matrix if len(weight) <= weight[0].numel() else matrix.mT
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        _, channels, height, width = weight.shape
        view: Tensor = rows.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
    else:
        view = rows.unflatten(1, weight.shape[1:])
    return view
