"""The device, the precision and the number of threads that a computation runs with."""

import torch

from facevae.errors import UserError
from facevae.params import Precision, TrainParams


def set_up_device(params: TrainParams) -> torch.device:
    """The device of `train.device`; the process is set up for it: number of threads, deterministic algorithms.

    Raises
    ------
    UserError
        CUDA is asked for and is not there.
    """
    has_cuda = torch.cuda.is_available()
    if params.device == "cuda" and not has_cuda:
        raise UserError("train.device: 'cuda', but torch finds no CUDA device: use auto or cpu")
    torch.set_num_threads(params.num_threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda" if has_cuda and params.device != "cpu" else "cpu")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which convolutions and products run in bfloat16 where `uses_bfloat16` has them so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether convolutions and products run in bfloat16: for "auto", where the hardware does so natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
