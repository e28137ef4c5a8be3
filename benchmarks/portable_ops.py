"""Which operations give the same bits on every x86-64 processor, and in which environment.

Each operation runs natively and under qemu-user as other processors, and the digests of its results are compared. QEMU
7.2 has AVX2 but no AVX-512, and its approximate instructions are exact. So a native processor with AVX-512 tells most.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
from measuring import RESULTS, ROOT
from numpy.typing import NDArray
from PIL import Image
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from facevae.figures.settings import Figure, FigureCanvasAgg
from facevae.numerics import ENVIRONMENT, use_portable_kernels
from facevae.train.muon import orthogonalized
from facevae.train.optimizers import Adam

GUESTS = ("Haswell", "EPYC")
INSTRUCTIONS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("MKL")}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "AVX2 alone": INSTRUCTIONS,
    "and MKL_CBWR=AVX2": INSTRUCTIONS | {"MKL_CBWR": "AVX2"},
    "and MKL_CBWR=COMPATIBLE": INSTRUCTIONS | {"MKL_CBWR": "COMPATIBLE"},
    "train.numerics: portable": ENVIRONMENT,
}
ELEMENTARY = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh"),
    *("sigmoid", "erf", "lgamma"),
)
SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 33, 64, 128)  # libraries have kernels of their own for small matrices
TABLE = RESULTS / "portable_ops.md"


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    """Numbers from -0.5 to 0.5: the generator's integers times a power of two, the same everywhere."""
    return np.random.default_rng([seed, *shape]).random(shape) - 0.5


def single(*shape: int, seed: int = 0) -> Tensor:
    return double(*shape, seed=seed).float()


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(numbers(*shape, seed=seed))


Kind = Callable[..., Tensor]
KINDS: tuple[Kind, Kind] = (single, double)


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def gram(size: int, kind: Kind) -> Tensor:
    """A matrix without an eigenvalue near 0."""
    rows = kind(size, 2 * size)
    return (rows[:, None] * rows[None]).sum(2) + 0.1 * torch.eye(size, dtype=rows.dtype)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in inputs]
    output = function(*leaves)
    output.backward(single(*output.shape, seed=9))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def convolved(images: Tensor, weight: Tensor) -> list[Tensor]:
    return with_gradients(lambda x, w: functional.conv2d(x, w, stride=2, padding=1), images, weight)


def convolved_back(images: Tensor, weight: Tensor) -> list[Tensor]:
    return with_gradients(lambda x, w: functional.conv_transpose2d(x, w, stride=2, padding=1), images, weight)


def normalized() -> list[Tensor]:
    def function(images: Tensor, weight: Tensor) -> Tensor:
        return functional.batch_norm(images, None, None, weight, weight, training=True)

    return with_gradients(function, last(single(8, 64, 9, 9)), single(64))


def in_all_sizes(function: Callable[[int, Kind], Any]) -> list[Any]:
    return [function(size, kind) for size in SIZES for kind in KINDS]


def stepped() -> Tensor:
    weight = single(1000)
    optimizer = Adam([weight])
    for step in range(3):
        weight.grad = single(1000, seed=step)
        optimizer.step(0.01)
    return weight


def drawn(seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return [
        *(torch.randn(size, generator=generator) for size in (10, 16, 1000)),
        torch.randn(100, generator=generator, dtype=torch.float64),
        torch.rand(100, generator=generator),
        torch.randperm(100, generator=generator),
        torch.multinomial(double(8).abs(), 100, replacement=True, generator=generator),
        functional.dropout(single(1000), 0.2),
        torch.nn.Linear(9, 9).weight.detach(),
    ]


def fitted_mixture() -> list[NDArray[np.float64]]:
    with warnings.catch_warnings(action="ignore"):  # it does not converge
        mixture = GaussianMixture(4, max_iter=10, random_state=0).fit(numbers(400, 8).astype(np.float32))
    return [mixture.weights_, mixture.means_, mixture.covariances_]


def pictures() -> list[Any]:
    picture = Image.fromarray(np.uint8(255 * (numbers(60, 50, 3) + 0.5)).repeat(3, 0).repeat(3, 1))
    found: list[Any] = []
    for file_format in ("PNG", "JPEG", "GIF", "WEBP"):
        picture.save(buffer := io.BytesIO(), file_format)
        found += [buffer.getvalue(), np.asarray(Image.open(buffer).convert("RGB"))]
    resampling = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX)
    return found + [np.asarray(picture.resize((40, 40), how)) for how in resampling]


def chart() -> bytes:
    figure = Figure()
    axes = figure.add_subplot(title="Title")
    axes.plot(numbers(99))
    axes.scatter(numbers(99), numbers(99, seed=1))
    FigureCanvasAgg(figure).print_png(buffer := io.BytesIO(), metadata={"Software": None})
    return buffer.getvalue()


def operations() -> dict[str, Callable[[], Any]]:
    """What computes each operation's result: tensors, arrays or bytes."""
    return {
        **{
            f"torch.{name}": lambda name=name: [getattr(torch, name)(4 * kind(1000).abs() + 0.01) for kind in KINDS]  # type: ignore[misc]
            for name in ELEMENTARY
        },
        "pow": lambda: [torch.pow(0.95, kind(1000)) for kind in KINDS] + [kind(1000).abs() ** 0.3 for kind in KINDS],
        "softplus, silu, logaddexp": lambda: [
            functional.softplus(single(999)),
            functional.silu(single(999)),
            torch.logaddexp(single(999), single(999, seed=1)),
        ],
        "logsumexp, softmax": lambda: [f(kind(50, 20), 1) for kind in KINDS for f in (torch.logsumexp, torch.softmax)],
        "binary cross-entropy": lambda: with_gradients(
            lambda x: functional.binary_cross_entropy_with_logits(x, single(64, 12, seed=1).gt(0).float()).reshape(1),
            single(64, 12),
        ),
        "sums, means, variances, norms": lambda: [
            reduced
            for kind in KINDS
            for x in (kind(33, 3, 17, 17),)
            for reduced in (x.sum(), x.mean((2, 3)), x.flatten(1).sum(1), x.sum(0), x.var(0), x.std(1), x.norm())
        ],
        "convolution": lambda: convolved(last(single(8, 64, 16, 16)), last(single(96, 64, 3, 3))),
        "convolution, channels first": lambda: convolved(single(8, 64, 16, 16), single(96, 64, 3, 3)),
        "first convolution": lambda: convolved(last(single(8, 3, 32, 32)), last(single(64, 3, 3, 3))),
        "transposed convolution": lambda: convolved_back(last(single(8, 96, 8, 8)), last(single(96, 64, 4, 4))),
        "transposed, channels first": lambda: convolved_back(single(8, 96, 8, 8), single(96, 64, 4, 4)),
        "last transposed convolution": lambda: convolved_back(last(single(8, 64, 16, 16)), last(single(64, 3, 4, 4))),
        "batch normalisation": normalized,
        "layer normalisation": lambda: with_gradients(
            lambda x: torch.native_layer_norm(x, x.shape[1:], None, None, 1e-5)[0], single(32, 512)
        ),
        "average pooling": lambda: with_gradients(
            lambda x: functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False), single(3, 64, 64)
        ),
        "linear layer": lambda: with_gradients(
            functional.linear, single(32, 2048), single(64, 2048, seed=1), single(64)
        ),
        "matrix products": lambda: in_all_sizes(lambda n, kind: kind(n, 2 * n + 1) @ kind(2 * n + 1, n, seed=1)),
        "matrix by vector": lambda: in_all_sizes(lambda n, kind: kind(300, n) @ kind(n)),
        "batched products": lambda: in_all_sizes(lambda n, kind: kind(2, n, 40) @ kind(2, 40, n)),
        "Cholesky factor": lambda: in_all_sizes(lambda n, kind: torch.linalg.cholesky(gram(n, kind))),
        "inverse from it": lambda: in_all_sizes(lambda n, kind: torch.cholesky_inverse(gram(n, kind).tril())),
        "triangular solve": lambda: in_all_sizes(
            lambda n, kind: torch.linalg.solve_triangular(gram(n, kind).tril(), kind(n, 50), upper=False)
        ),
        "solve": lambda: in_all_sizes(lambda n, kind: torch.linalg.solve(gram(n, kind), kind(n, 5))),
        "log determinant": lambda: in_all_sizes(lambda n, kind: torch.logdet(gram(n, kind))),
        "singular values": lambda: in_all_sizes(lambda n, kind: torch.linalg.svd(kind(n, n + 3), full_matrices=False)),
        "Muon's orthogonalisation": lambda: [orthogonalized(single(2, n, 3 * n)) for n in (3, 8, 16, 64, 96)],
        "Adam": stepped,
        "distances": lambda: [torch.cdist(double(50, 64), double(60, 64)), torch.pdist(double(30, 300))],
        "covariance, correlation": lambda: [double(20, 90).cov(correction=0), double(5, 90).corrcoef()],
        "top k, sort, quantile": lambda: [single(99).topk(9)[0], single(99).sort()[0], double(99).quantile(0.05)],
        "interpolation of images": lambda: [
            functional.interpolate(single(4, 3, 32, 32), size=16, mode="bilinear", antialias=True),
            functional.interpolate(single(4, 3, 16, 16), size=32, mode="bilinear"),
        ],
        "lerp, addcmul, linspace": lambda: [
            torch.lerp(single(99), single(99, seed=1), 0.3),
            torch.addcmul(single(99), single(99), single(99), value=0.7),
            torch.logspace(-2, 4, 16, base=2.0),
            torch.linspace(0, 1, 26),
        ],
        "random numbers": drawn,
        "NumPy: exp, log, power": lambda: [
            *(f(np.abs(numbers(999).astype(kind)) + 0.1) for f in (np.exp, np.log) for kind in ("f4", "f8")),
            np.power(np.abs(numbers(999)), 0.3),
        ],
        "NumPy: sin, cos, tanh": lambda: [
            f(numbers(999).astype(kind)) for f in (np.sin, np.cos, np.tanh) for kind in ("f4", "f8")
        ],
        "NumPy: sums, means": lambda: [
            f(numbers(999, 9).astype(kind)) for f in (np.sum, np.mean, np.std) for kind in ("f4", "f8")
        ],
        "NumPy: products": lambda: [
            *(numbers(n, 64) @ numbers(64, n) for n in SIZES),
            numbers(300, 64) @ numbers(64),
            np.einsum("ij,ij->i", numbers(50, 64), numbers(50, 64, seed=1)),
        ],
        "NumPy: linear algebra": lambda: [
            result
            for n in SIZES
            for matrix in (gram(n, double).numpy(),)
            for result in (np.linalg.inv(matrix), *np.linalg.svd(matrix), *np.linalg.eigh(matrix))
        ],
        "NumPy: Cholesky factor": lambda: in_all_sizes(lambda n, kind: np.linalg.cholesky(gram(n, kind).numpy())),
        "NumPy: random numbers": lambda: [np.random.default_rng(1).standard_normal(999)],
        "SciPy: Cholesky, solve": lambda: [
            scipy.linalg.cholesky(gram(64, double).numpy(), lower=True),
            scipy.linalg.solve_triangular(gram(64, double).tril().numpy(), numbers(64, 100), lower=True),
        ],
        "SciPy: ndtri": lambda: scipy.special.ndtri((np.arange(20) + 0.5) / 20),
        "scikit-learn: mixture": fitted_mixture,
        "Pillow: resize, encode, decode": pictures,
        "matplotlib: Agg": chart,
    }


def digests(names: str) -> dict[str, str]:
    """The digest of the result of each operation whose name contains `names`."""
    torch.set_num_threads(1)
    return {name: _digest(operation()) for name, operation in operations().items() if names in name}


def _digest(result: Any) -> str:
    sha = hashlib.sha256()
    for part in _parts(result):
        sha.update(part)
    return sha.hexdigest()


def _parts(result: Any) -> Iterable[bytes]:
    if isinstance(result, bytes):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from _parts(part)
    else:
        yield np.ascontiguousarray(result).tobytes()


def digests_on(guest: str | None, variables: dict[str, str], names: str = "") -> dict[str, str]:
    """The digests from a new process with these variables, natively or on an emulated processor."""
    emulator = ["qemu-x86_64", "-cpu", guest] if guest else []
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **variables}
    kernels = ["--kernels"] if variables == ENVIRONMENT else []
    command = [*emulator, sys.executable, __file__, "--child", "--only", names, *kernels]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="operations whose names contain this")
    parser.add_argument("--child", action="store_true", help="print the digests of this process as JSON")
    parser.add_argument("--kernels", action="store_true", help="replace kernels as train.numerics: portable does")
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.kernels:
            use_portable_kernels()
        print(json.dumps(digests(arguments.only)))
        return
    cells: dict[str, list[str]] = {}
    for variables in ENVIRONMENTS.values():
        native = digests_on(None, variables, arguments.only)
        emulated = {guest: digests_on(guest, variables, arguments.only) for guest in GUESTS}
        for name, digest in native.items():
            differing = [guest for guest in GUESTS if emulated[guest][name] != digest]
            cells.setdefault(name, []).append(f"not {', '.join(differing)}" if differing else "equal")
    rows = [
        ["operation", *ENVIRONMENTS],
        ["---"] * (len(ENVIRONMENTS) + 1),
        *([name, *row] for name, row in cells.items()),
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    print(table)
    if not arguments.only:
        TABLE.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
