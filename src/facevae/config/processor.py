"""Whether this processor can compute as `train.numerics` asks."""

from pathlib import Path

from facevae.config.schema import TrainParams
from facevae.errors import UserError

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
NEEDED = ("avx2", "fma")


def require_processor(params: TrainParams) -> None:
    """Raise a `UserError` if the numerics are portable and Linux says that the processor lacks AVX2 or FMA.

    The later stages would be killed while NumPy is imported, before they could tell why.
    """
    if params.numerics != "portable" or not CPU_INFO.exists():
        return
    lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), list(NEEDED))
    if missing := [name for name in NEEDED if name not in flags]:
        raise UserError(
            f"train.numerics: 'portable' needs a processor with AVX2 and FMA; this one lacks {', '.join(missing)}. "
            "Use native"
        )
