"""The device, the precision and the number of threads that a computation runs with."""

import ctypes
import os
from contextlib import suppress

import numpy as np
import torch

from facevae.config.schema import Precision, TrainParams
from facevae.errors import UserError

LARGE_MAP = 2**20  # bytes: more than the cache of a core

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def set_up_device(params: TrainParams) -> torch.device:
    """The device of `train.device`; the process is set up for it: number of threads, deterministic algorithms, memory.

    Of several processes that torchrun starts on a machine each takes a GPU of its own.

    Raises
    ------
    UserError
        CUDA is asked for and is not there, or there are fewer GPUs than processes.
    """
    device = torch.device("cpu") if params.device == "cpu" or not torch.cuda.is_available() else _own_gpu()
    if params.device == "cuda" and device.type == "cpu":
        raise UserError("train.device: 'cuda', but torch finds no CUDA device: use auto or cpu")
    torch.set_num_threads(params.num_threads)
    _keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its products depend on what ran before
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, which imports torch's compiler
    # nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    return device


def _own_gpu() -> torch.device:
    """CUDA, once it stands for the GPU with this process's number among those of the machine."""
    number, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= num_gpus:
        raise UserError(
            f"train.launcher: it starts {number + 1} processes or more on a machine with {num_gpus} GPU(s): lower "
            "--nproc-per-node, or set train.device to cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda")


def _keep_freed_memory() -> None:
    """Have the process keep what is freed for what comes next, until it ends.

    By default glibc gives large blocks back to the system, and every step pays again for having its pages zeroed.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def platform(device: torch.device) -> dict[str, str]:
    """Versions and processor that the bits of a computation on this device depend on."""
    facts = {"torch": torch.__version__, "numpy": np.__version__, "device": device.type}
    if device.type == "cuda":
        return {**facts, "processor": torch.cuda.get_device_name(device)}
    return {**facts, "processor": torch.backends.cpu.get_cpu_capability(), **_cpu_flags()}


def memory_format(device: torch.device, largest_map_bytes: int) -> torch.memory_format:
    """The order of a map's values in memory by which convolutions are trained fastest.

    It is channels_last, but on processors with AVX2 alone: there oneDNN takes up to five times as long in it for the
    gradient of the weights, once the maps are large. `largest_map_bytes` is the size of one image's largest.
    """
    is_avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    is_slow = is_avx2 and largest_map_bytes > LARGE_MAP
    return torch.contiguous_format if is_slow else torch.channels_last


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which convolutions and products run in bfloat16 where `uses_bfloat16` has them so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether convolutions and products run in bfloat16: for "auto", where the hardware does so natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(_cpu_flags().get(name) == "True" for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _cpu_flags() -> dict[str, str]:
    """What the processor can do, by name: "True" or "False", or a size; but not how many cores there are."""
    return {name: str(value) for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
