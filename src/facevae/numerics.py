"""Arithmetic that gives the same bits on every x86-64 processor with AVX2, for `train.numerics: portable`.

PyTorch, NumPy and their libraries choose kernels by the processor, and kernels differ in the order of sums and in the
polynomials of their functions. Environment variables make nearly all of them choose the same everywhere. What is left
are two kernels of MKL, which apparently start from the processor's approximation of 1 / sqrt(x), whose last bits differ
between processors: NumPy's replace them. NumPy's OpenBLAS also multiplies matrices, because MKL's common branch takes
twice as long. benchmarks/portable_ops.py compares the bits of each operation, and bench_portable.py measures the price.
"""

import logging
import os
import platform
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.errors import UserError

ENVIRONMENT = {  # stages/portable.env sets it before Python starts, since the libraries read it when they are loaded
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # PyTorch's matrix products, LAPACK, exp and log: the branch that all vendors share
    "MKL_DYNAMIC": "FALSE",  # as many threads as train.num_threads says, even if fewer processors are free
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",  # NumPy's functions
    "OPENBLAS_CORETYPE": "Haswell",  # linear algebra of NumPy, SciPy and scikit-learn
    "OPENBLAS_NUM_THREADS": "1",
}

X86_64 = {"x86_64", "AMD64"}  # as the systems call it

logger = logging.getLogger(__name__)


def is_x86_64() -> bool:
    """Whether this processor can have the kernels that are the same everywhere."""
    return platform.machine() in X86_64


def use_portable_kernels() -> None:
    """Let PyTorch compute the same bits on every x86-64 processor, until the process ends.

    On other processors, such as Arm's, it computes as it does there, and a warning says so.

    Raises
    ------
    UserError
        The processor lacks AVX2, or the process was started without the variables of `ENVIRONMENT`.
    """
    if not is_x86_64():
        logger.warning(
            "train.numerics: 'portable' gives the same bytes on x86-64 processors. On this one, %s, the results differ "
            "from theirs",
            platform.machine(),
        )
        return
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx2") and capabilities.get("fma3")):
        raise UserError("train.numerics: 'portable' needs an x86-64 processor with AVX2 and FMA. Use native")
    if wrong := [name for name, value in ENVIRONMENT.items() if os.environ.get(name) != value]:
        raise UserError(
            f"train.numerics: 'portable' needs other values of {', '.join(wrong)} when Python starts. Run the stage by "
            "`dvc repro`, or by `env $(cat stages/portable.env) PYTHONPATH=src python stages/NAME.py`"
        )
    _replace_kernels()


@cache
def _replace_kernels() -> torch.library.Library:
    """Compute square roots, Cholesky factors and products with NumPy, for as long as the returned library lives."""
    library = torch.library.Library("aten", "IMPL")
    kernels: dict[str, Callable[..., object]] = {
        "sqrt": _sqrt,
        "sqrt_": _sqrt_in_place,
        "sqrt.out": _sqrt_out,
        "linalg_cholesky_ex": _cholesky_ex,
        "mm": _product,
        "bmm": _product,
        "addmm": _sum_with_product,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that another kernel is replaced
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU")
    return library


def _sqrt(values: Tensor) -> Tensor:
    kind = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    return _sqrt_out(values, out=torch.empty_like(values, dtype=kind))


def _sqrt_in_place(values: Tensor) -> Tensor:
    return _sqrt_out(values, out=values)


def _sqrt_out(values: Tensor, *, out: Tensor) -> Tensor:
    with np.errstate(invalid="ignore"):  # NaN, as in PyTorch
        np.sqrt(values.detach().numpy(), out=out.detach().numpy(), casting="same_kind")
    return out


def _cholesky_ex(matrices: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """Lower factors of matrices (..., n, n), and 1 for each if any of them is not positive definite, else 0."""
    info = torch.zeros(matrices.shape[:-2], dtype=torch.int32)
    try:
        factors = torch.from_numpy(np.linalg.cholesky(matrices.detach().numpy(), upper=upper))
    except np.linalg.LinAlgError:
        if check_errors:
            raise
        return torch.full_like(matrices, torch.nan), torch.ones_like(info)
    return factors, info


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of matrices (..., m, k) and (..., k, n)."""
    return torch.from_numpy(np.matmul(_for_blas(left), _for_blas(right)))


def _for_blas(matrices: Tensor) -> NDArray[Any]:
    """Matrices in an order that BLAS takes; NumPy would multiply others by plain loops."""
    return (matrices if matrices.mT.is_contiguous() else matrices.contiguous()).detach().numpy()


def _sum_with_product(term: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta * term + alpha * left @ right`; without the term, NaN or not, if beta is 0."""
    product = _product(left, right)
    if alpha != 1:
        product *= alpha
    return product if beta == 0 else product.add_(term, alpha=beta)
