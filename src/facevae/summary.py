"""A table of a model's layers, their output shapes and their parameter counts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from facevae.config.schema import ModelParams
from facevae.model.vae import VAE

Row = tuple[str, str, str, str]
HEADER: Row = ("layer", "kind", "output shape", "parameters")


def summarize(params: ModelParams, image_size: int, image_channels: int) -> str:
    """List the layers in the order in which they run, with the output shape for one image.

    The model runs on torch's meta device, which computes shapes only.
    """
    rows: list[Row] = []
    with torch.device("meta"):
        model = VAE(params, image_size, image_channels).eval()
        for name, module in model.named_modules():
            if not any(module.children()):
                module.register_forward_hook(_row_writer(name, rows))
        model.decode(model.encode(torch.empty(1, image_channels, image_size, image_size)).mean)
    widths = [max(len(row[column]) for row in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [_join(row, widths) for row in [HEADER, *rows]]
    total = sum(weight.numel() for weight in model.parameters())
    return "\n".join([*lines, f"{total:,} parameters"])


def _join(row: Row, widths: list[int]) -> str:
    """Align the cells in columns, the number of parameters to the right."""
    *words, number = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([*words, number.strip().rjust(widths[-1])])


def _row_writer(name: str, rows: list[Row]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def write(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count = sum(weight.numel() for weight in module.parameters())
        shape = " x ".join(str(size) for size in output.shape[1:])
        rows.append((name, type(module).__name__, shape, f"{count:,}"))

    return write
