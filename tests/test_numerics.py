"""Portable numerics: the same bits on every x86-64 processor, and native ones that nothing touches."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import portable_ops
import pytest
import torch
import yaml
from conftest import ROOT, clean_environment, failure_of, init_repository, small_params, small_tree

from facevae.commands import project
from facevae.config import processor
from facevae.device import platform, set_up_device
from facevae.errors import UserError
from facevae.numerics import ENVIRONMENT, use_portable_kernels

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
COMPUTING = [name for name in STAGES if name != "prepare"]
PORTABLE: dict[str, object] = {"train__numerics": "portable"}
CPU = torch.device("cpu")
KERNELS = """
import json, math, warnings
import torch
from facevae.numerics import use_portable_kernels

warnings.simplefilter("error")
use_portable_kernels()
single = (8 * torch.rand(999, generator=torch.Generator().manual_seed(0))).requires_grad_()
root = single.sqrt()
root.sum().backward()
strided = torch.arange(12.0).reshape(3, 4).T
rows = torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(1))
gram = rows @ rows.mT
factor, info = torch.linalg.cholesky_ex(gram)
try:
    torch.linalg.cholesky(-gram)
except torch.linalg.LinAlgError as error:
    refused = str(error)


def error(found, left, right):  # of a product (..., m, n) of (..., m, k) and (..., k, n)
    exact = (left.double()[..., :, :, None] * right.double()[..., None, :, :]).sum(-2)
    return float((found - exact).detach().abs().max())


left, right = rows[0].clone().requires_grad_(), rows[1].clone().requires_grad_()  # (9, 20)
bias = torch.ones(9)
linear = torch.nn.functional.linear(left, right, bias)
linear.sum().backward()
errors = [
    error(linear - bias, left, right.T),
    error(left.grad, torch.ones(9, 9), right),
    error(right.grad, torch.ones(9, 9), left),
    error(gram, rows, rows.mT),
    error(rows[0, :, ::2] @ rows[0, :, ::2].T, rows[0, :, ::2], rows[0, :, ::2].T),
    error(rows[0, :1].expand(4, 20) @ rows[1].T, rows[0, :1].expand(4, 20), rows[1].T),
    error(torch.addmm(bias, rows[0], rows[1].T, beta=2, alpha=3) / 3 - 2 / 3, rows[0], rows[1].T),
    error(torch.addmm(bias * math.nan, rows[0], rows[1].T, beta=0), rows[0], rows[1].T),
    error(torch.ones(2, 0) @ torch.ones(0, 3), torch.zeros(2, 1), torch.zeros(1, 3)),
]
print(json.dumps({
    "errors": errors, "single": single.tolist(), "root": root.tolist(), "slope": single.grad.tolist(),
    "special": [str(value) for value in torch.tensor([0.0, -1.0, math.inf, 4.0]).sqrt_().tolist()],
    "integers": torch.tensor([4, 9]).sqrt().tolist(),
    "strided": torch.sqrt(strided, out=torch.empty(4, 3)).square().tolist(), "was": strided.tolist(),
    "difference": float((factor @ factor.mT - gram).abs().max()), "above": float(factor.triu(1).abs().max()),
    "info": info.tolist(), "failed": torch.linalg.cholesky_ex(-gram)[1].tolist(), "refused": refused,
}))
"""

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64, of Debian's package qemu-user"
)


def portable_environment() -> dict[str, str]:
    return clean_environment() | ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")}


@pytest.mark.parametrize("numerics", ["native", "portable"])
@pytest.mark.parametrize("stage", COMPUTING)
def test_a_stage_starts_with_the_environment_of_its_numerics(tmp_path: Path, stage: str, numerics: str) -> None:
    """The libraries read it while they are imported, so it must be there before Python starts."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nenv\n")
    fake.chmod(0o755)
    command = STAGES[stage]["cmd"].replace("${train.numerics}", numerics).replace("${train.launcher}", "python")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    shown = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in shown.stdout.splitlines())
    own = {"PYTHONPATH", "PWD", "SHLVL", "_"}
    assert {name: found[name] for name in found.keys() - environment - own} == (
        ENVIRONMENT if numerics == "portable" else {}
    )


def test_every_stage_that_computes_depends_on_the_numerics() -> None:
    assert [name for name in COMPUTING if not {"train", "train.numerics"} & set(STAGES[name]["params"])] == []
    assert [name for name in COMPUTING if "src/facevae/numerics.py" not in STAGES[name]["deps"]] == []


def test_native_numerics_leave_environment_and_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for GPUs, whatever the numerics
    monkeypatch.setattr("facevae.device.use_portable_kernels", lambda: pytest.fail("it replaced kernels"))
    before = dict(os.environ)
    set_up_device(small_params().train)
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_portable_numerics_need_every_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=rf"portable' needs other values of {name} when Python starts.*`dvc repro`"):
        set_up_device(small_params(**PORTABLE).train)


@pytest.mark.parametrize("missing", ["avx2", "fma3"])
def test_a_processor_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True, missing: False})
    with pytest.raises(UserError, match="train.numerics: 'portable' needs an x86-64 processor with AVX2 and FMA"):
        use_portable_kernels()


def test_another_kind_of_processor_computes_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    use_portable_kernels()
    assert "On this one, arm64, the results differ" in caplog.text
    assert platform(CPU, "portable") == platform(CPU, "native")


@pytest.mark.parametrize(("flags", "missing"), [("sse2 avx fma", "avx2"), ("avx2", "fma"), ("avx", "avx2, fma")])
def test_prepare_and_check_refuse_a_processor_without_the_instructions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    missing: str,
) -> None:
    """The later stages cannot: NumPy, told to use Haswell's kernels, is killed while it is imported."""
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPU_INFO", info)
    params = small_params(**PORTABLE).train
    processor.require_processor(params)  # not Linux: unknown
    info.write_text("processor : 0\nflags : fpu avx2 fma avx512f\n")
    processor.require_processor(params)
    info.write_text(f"processor : 0\nflags : fpu {flags}\n")
    with pytest.raises(UserError, match=f"train.numerics: 'portable' needs .* this one lacks {missing}. Use native"):
        processor.require_processor(params)
    processor.require_processor(small_params().train)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(small_tree(**PORTABLE)))
    with pytest.raises(UserError, match="'portable' needs"):
        project.check(path)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    monkeypatch.chdir(tmp_path)
    assert failure_of("prepare", capsys).startswith("error: train.numerics: 'portable' needs")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [("precision", "bfloat16", "float32"), ("precision", "auto", "float32"), ("device", "auto", "cpu")],
)
def test_portable_refuses_what_depends_on_the_machine(key: str, value: str, wanted: str) -> None:
    expected = f"train.{key}: '{value}' depends on the processor, but .* set it to {wanted}, or train.numerics"
    with pytest.raises(UserError, match=expected):
        small_params(**PORTABLE, **{f"train__{key}": value})


def test_the_platform_of_portable_numerics_names_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of the fingerprint in the header of the weights."""
    found = []
    for has_avx512 in (False, True):
        capabilities = {"avx2": True, "fma3": True, "avx512_f": has_avx512}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        found.append((platform(CPU, "portable"), platform(CPU, "native")))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    assert found[0][0] != found[0][1]


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="the processor has no AVX2")
def test_replaced_kernels_agree_with_plain_formulas() -> None:
    command = [sys.executable, "-c", KERNELS]
    output = subprocess.run(command, env=portable_environment(), capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    assert found["root"] == [float(np.float32(math.sqrt(value))) for value in found["single"]]
    assert found["slope"] == pytest.approx([0.5 / root for root in found["root"]], rel=1e-6)
    assert found["special"] == ["0.0", "nan", "inf", "2.0"]
    assert found["integers"] == [2, 3]
    assert np.array(found["strided"]) == pytest.approx(np.array(found["was"]), rel=1e-6)
    assert [error for error in found["errors"] if not error < 1e-4] == []  # NaN counts
    assert found["difference"] < 1e-5
    assert found["above"] == 0
    assert found["info"] == [0, 0]
    assert found["failed"] == [1, 1]
    assert "not positive-definite" in found["refused"]


@pytest.mark.parametrize("changed", ["metrics/train.json", "plots/samples.png", "dvc.lock"])
def test_ci_demands_the_committed_bytes(tmp_path: Path, changed: str) -> None:
    for name in ("metrics/train.json", "plots/samples.png", "dvc.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1.0\n")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small_tree(**PORTABLE)))
    init_repository(tmp_path)
    check = [sys.executable, str(ROOT / ".ci" / "check_metrics.py")]
    assert subprocess.run(check, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (tmp_path / changed).write_text("1.0000000001\n")
    result = subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert changed in result.stdout


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize("guest", portable_ops.GUESTS)
def test_operations_have_the_same_bits_on_another_processor(guest: str) -> None:
    native = portable_ops.digests_on(None, ENVIRONMENT)
    assert len(native) > 50
    emulated = portable_ops.digests_on(guest, ENVIRONMENT)
    assert [name for name in native if emulated[name] != native[name]] == []


@pytest.mark.slow
@needs_qemu
def test_without_the_replaced_kernels_processors_differ() -> None:
    """Else the test above would prove nothing."""
    variables = portable_ops.ENVIRONMENTS["and MKL_CBWR=COMPATIBLE"]
    native, emulated = (portable_ops.digests_on(guest, variables, "torch.sqrt") for guest in (None, "Haswell"))
    assert native != emulated
