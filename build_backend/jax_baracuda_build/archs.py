"""Which GPU architectures a build compiles kernels for.

An architecture is written as nvcc writes it, without the prefix: ``80``, ``90a``. The environment
variable ``JAX_BARACUDA_CUDA_ARCHS`` names them (``80;90a``), or says ``native`` (the GPUs of this
machine) or ``none`` (no kernels). Unset means ``native`` where there is a GPU that the kernels
support, and ``none`` elsewhere.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping

VARIABLE = "JAX_BARACUDA_CUDA_ARCHS"
OLDEST = 80  # bfloat16 arithmetic, cp.async


class BuildError(SystemExit):
    """Ends the build with one line instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"jax-baracuda: error: {message}")


def say(message: str) -> None:
    """One line of build output (pip shows it with ``-v``)."""
    print(f"jax-baracuda: {message}", flush=True)


def query_gpus() -> list[str]:
    """Compute capabilities of this machine's GPUs as nvidia-smi prints them, such as ``9.0``."""
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0:
        return []
    return re.findall(r"^\s*(\d+\.\d+)\s*$", result.stdout, flags=re.MULTILINE)


def from_capability(capability: str) -> str:
    """``8.9`` -> ``89``; Hopper becomes ``90a``, which has the instructions that 90 leaves out."""
    arch = capability.replace(".", "")
    return "90a" if arch == "90" else arch


def _number(arch: str) -> int:
    return int(arch.rstrip("af"))


def _ordered(archs: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(archs), key=lambda arch: (_number(arch), arch)))


def parse(value: str) -> tuple[str, ...]:
    """``"90a;80"`` -> ``("80", "90a")``. Raises BuildError for anything nvcc would not take."""
    names = [name for name in re.split(r"[;,\s]+", value) if name]
    for name in names:
        if not re.fullmatch(r"[1-9]\d{1,2}[af]?", name):
            raise BuildError(
                f"{VARIABLE}={value!r}: {name!r} is not an architecture; "
                "write a list such as '80;90a', or 'native', or 'none'"
            )
        if _number(name) < OLDEST:
            raise BuildError(
                f"{VARIABLE}={value!r}: the kernels need compute capability "
                f"{OLDEST // 10}.{OLDEST % 10} or newer; leave out {name!r}"
            )
    return _ordered(names)


def select(
    environ: Mapping[str, str], query: Callable[[], list[str]] = query_gpus
) -> tuple[str, ...]:
    """The architectures to build, oldest first; empty means a wheel without kernels."""
    value = environ.get(VARIABLE, "").strip()
    if value.lower() == "none":
        return ()
    if value and value.lower() != "native":
        return parse(value)
    capabilities = query()
    if value and not capabilities:
        raise BuildError(
            f"{VARIABLE}=native, but nvidia-smi finds no GPU; name the architectures, "
            "such as '80;90a'"
        )
    archs = _ordered(from_capability(capability) for capability in capabilities)
    supported = tuple(arch for arch in archs if _number(arch) >= OLDEST)
    if value and not supported:
        raise BuildError(
            f"{VARIABLE}=native: compute capability {', '.join(capabilities)} is older than "
            f"{OLDEST // 10}.{OLDEST % 10}; set it to 'none' for the reference alone"
        )
    return supported
