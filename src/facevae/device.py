"""Set up the device, the precision, the threads and the memory of a process."""

import ctypes
import os
from contextlib import suppress

import numpy as np
import torch

from facevae.config.schema import Numerics, Precision, TrainParams
from facevae.errors import UserError
from facevae.numerics import is_x86_64, use_portable_kernels

LARGE_MAP = 2**20  # bytes; a larger map exceeds the cache of one core

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def set_up_device(params: TrainParams) -> torch.device:
    """Set the number of threads, deterministic algorithms and the use of memory; return the device to compute on.

    Each process that torchrun starts on a machine takes its own GPU.

    Raises
    ------
    UserError
        `train.device` is cuda without a GPU, or the machine has fewer GPUs than processes, or this processor or process
        cannot be portable as `train.numerics` asks.
    """
    device = torch.device("cpu") if params.device == "cpu" or not torch.cuda.is_available() else _own_gpu()
    if params.device == "cuda" and device.type == "cpu":
        raise UserError("train.device: 'cuda', but torch finds no CUDA device. Use auto or cpu")
    if params.numerics == "portable":
        use_portable_kernels()
    torch.set_num_threads(params.num_threads)
    _keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else products depend on what ran before
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import torch's compiler
    # no code here reads memory before it writes it, so filling it first only costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    return device


def _own_gpu() -> torch.device:
    """Make the GPU with this process's number on the machine the current CUDA device."""
    number, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= num_gpus:
        raise UserError(
            f"train.launcher: starts at least {number + 1} processes on a machine with {num_gpus} GPU(s). Lower "
            "--nproc-per-node, or set train.device to cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda")


def _keep_freed_memory() -> None:
    """Keep freed memory in the process.

    By default glibc returns large blocks to the system, and every step then waits for the system to zero new pages.
    """
    with suppress(AttributeError):  # a C library other than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def platform(device: torch.device, numerics: Numerics) -> dict[str, str]:
    """The versions and the processor that decide how a computation on this device rounds."""
    facts = {"torch": torch.__version__, "numpy": np.__version__, "device": device.type}
    if device.type == "cuda":
        return {**facts, "processor": torch.cuda.get_device_name(device)}
    if numerics == "portable" and is_x86_64():
        return {**facts, "processor": "x86-64 with AVX2"}
    return {**facts, "processor": torch.backends.cpu.get_cpu_capability(), **_cpu_flags()}


def memory_format(device: torch.device, largest_map_bytes: int) -> torch.memory_format:
    """The memory order in which convolutions train fastest.

    This is channels_last, except for large maps on processors with AVX2 but without AVX-512: there oneDNN takes up to
    five times as long in channels_last for the gradient of the weights. `largest_map_bytes` is for one image.
    """
    is_avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    is_slow = is_avx2 and largest_map_bytes > LARGE_MAP
    return torch.contiguous_format if is_slow else torch.channels_last


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context that runs convolutions and matrix products in bfloat16 if `uses_bfloat16` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(precision, device))


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to use bfloat16; "auto" does so if the hardware supports it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(_cpu_flags().get(name) == "True" for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _cpu_flags() -> dict[str, str]:
    """The processor's capabilities by name, each "True", "False" or a size, without the number of cores."""
    return {name: str(value) for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
