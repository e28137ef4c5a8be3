import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, small_params

from facevae.device import memory_format, set_up_device, uses_bfloat16
from facevae.errors import UserError

CPU = torch.device("cpu")


def test_params_set_the_number_of_threads() -> None:
    assert set_up_device(small_params(train__num_threads=2).train) == CPU
    assert torch.get_num_threads() == 2
    set_up_device(small_params(train__num_threads=1).train)
    assert torch.get_num_threads() == 1


def test_set_up_does_not_import_the_compiler() -> None:
    script = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from facevae.device import set_up_device",
            "from facevae.config.params import load_params",
            f"set_up_device(load_params(Path({str(ROOT / 'presets/folder.yaml')!r})).train)",
            "print([name for name in ('torch._dynamo', 'torch._inductor', 'torchvision') if name in sys.modules])",
        ]
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    script = "\n".join(
        [
            "import resource, torch",
            "from pathlib import Path",
            "from facevae.device import set_up_device",
            "from facevae.config.params import load_params",
            f"set_up_device(load_params(Path({str(ROOT / 'presets/folder.yaml')!r})).train)",
            "faults = []",
            "for _ in range(20):  # the first few rounds make room of the right size",
            "    torch.ones(2**25)",
            "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)",
            "print(faults[-1] - faults[-2])",
        ]
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(output) < 100  # of 32,768 pages


def test_operations_that_are_not_deterministic_are_refused() -> None:
    set_up_device(small_params().train)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="train.device: 'cuda', but torch finds no CUDA device"):
        set_up_device(small_params(train__device="cuda").train)
    assert set_up_device(small_params(train__device="auto").train) == CPU


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert set_up_device(small_params(train__device=device).train) == torch.device("cuda")
    assert chosen == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="train.launcher: starts at least 3 processes on a machine with 2 GPU"):
        set_up_device(small_params(train__device=device).train)
    assert set_up_device(small_params(train__device="cpu").train) == CPU
    assert chosen == [0, 1]


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_auto_uses_bfloat16_if_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert uses_bfloat16("auto", CPU) is expected
    assert uses_bfloat16("float32", CPU) is False
    assert uses_bfloat16("bfloat16", CPU) is True


@pytest.mark.parametrize(("capability", "device"), [("AVX2", "cpu"), ("AVX512", "cpu"), ("AVX2", "cuda")])
def test_large_maps_train_channels_first_with_avx2_alone(
    monkeypatch: pytest.MonkeyPatch, capability: str, device: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    is_slow = (capability, device) == ("AVX2", "cpu")
    large, small = (memory_format(torch.device(device), size) for size in (8 * 2**20, 2**17))
    assert large is (torch.contiguous_format if is_slow else torch.channels_last)
    assert small is torch.channels_last
