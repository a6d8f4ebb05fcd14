"""The only importer of the compiled extension: registers its kernels with XLA, or says why not.

Nothing here raises at import. A program can be lowered and exported for CUDA in a process that has
neither the extension nor a GPU; where there is a GPU, a missing kernel is an error with the fix.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping, Sequence

import jax

FLASH_DECODE = "jax_baracuda_flash_decode"
FLASH_ATTENTION = "jax_baracuda_flash_attention"
FLASH_ATTENTION_BACKWARD = "jax_baracuda_flash_attention_backward"
FLASH_ATTENTION_BIAS_GRAD = "jax_baracuda_flash_attention_bias_grad"
PAGED_DECODE = "jax_baracuda_paged_decode"
PAGED_PREFILL = "jax_baracuda_paged_prefill"
APPEND = "jax_baracuda_append"
ROPE = "jax_baracuda_rope"
INT4_MATMUL = "jax_baracuda_int4_matmul"
TARGETS = (
    FLASH_DECODE,
    FLASH_ATTENTION,
    FLASH_ATTENTION_BACKWARD,
    FLASH_ATTENTION_BIAS_GRAD,
    PAGED_DECODE,
    PAGED_PREFILL,
    APPEND,
    ROPE,
    INT4_MATMUL,
)

_ARCHITECTURE = re.compile(r"(\d+)([af]?)(-real|-virtual)?")

_REINSTALL = (
    "reinstall jax_baracuda on this machine, `pip install --force-reinstall --no-deps ...`, which "
    "builds for the GPU that it finds; or name the architectures for the build, as in "
    "`JAX_BARACUDA_CUDA_ARCHS='80;90a' pip install ...`"
)


@dataclasses.dataclass(frozen=True)
class Extension:
    """What is known of the compiled extension in this process.

    Attributes:
      targets: the names of the XLA FFI targets that are registered.
      build: ``cuda_archs``, ``cuda_version``, ``ffi_api`` and ``version`` of the build, or empty.
      problem: why kernels are missing, None when all of them are registered.
    """

    targets: frozenset[str]
    build: Mapping[str, str]
    problem: str | None


@functools.cache
def register() -> Extension:
    """Registers every kernel of the extension with XLA, once a process. Never raises."""
    from jax_baracuda import __version__

    done: set[str] = set()
    build: dict[str, str] = {}
    problem = None
    try:
        extension = importlib.import_module("jax_baracuda._ffi")
        build = dict(extension.build_info())
        if build["version"] != __version__:
            raise ImportError(f"it is of version {build['version']}, the package of {__version__}")
        for target, stages in extension.registrations().items():
            jax.ffi.register_ffi_target(target, stages, platform="CUDA", api_version=1)
            done.add(target)
    except ModuleNotFoundError:
        problem = "the compiled extension was not installed, as on a machine that had no GPU"
    except Exception as error:  # a broken extension must not break `import jax_baracuda`
        problem = f"the compiled extension cannot be used ({type(error).__name__}: {error})"
    else:
        missing = [target for target in TARGETS if target not in done]
        if missing:
            problem = f"the compiled extension has no {', '.join(missing)}"
    return Extension(frozenset(done), build, problem)


def hopper_plan(**call: int) -> Mapping[str, int]:
    """How the forward kernel for Hopper GPUs would divide a call; empty without the extension."""
    if not register().targets:
        return {}
    plan: dict[str, int] = importlib.import_module("jax_baracuda._ffi").hopper_plan(**call)
    return plan


def require(target: str) -> None:
    """Raises RuntimeError if this process has a CUDA device but not this kernel."""
    extension = register()
    if target not in extension.targets and has_cuda_device():
        reason = extension.problem or f"the extension has no {target}"
        raise RuntimeError(
            f"{target}, the CUDA kernel, is missing: {reason}. To fix it, {_REINSTALL}. "
            "`python -m jax_baracuda` shows what is installed. implementation='reference' runs "
            "plain jax.numpy meanwhile."
        )


@functools.cache
def has_cuda_device() -> bool:
    """Whether jax sees a CUDA device in this process."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:  # no such platform here
        return False


def architectures() -> tuple[str, ...]:
    """The CUDA architectures that the extension holds kernels for, such as ('80', '90a')."""
    return tuple(arch for arch in register().build.get("cuda_archs", "").split(";") if arch)


@functools.cache
def serving_architecture() -> str | None:
    """The built architecture that the GPU of this process would run, None if there is none."""
    if not has_cuda_device():
        return None
    return best_architecture(architectures(), str(jax.devices("cuda")[0].compute_capability))


def best_architecture(built: Sequence[str], compute_capability: str) -> str | None:
    """The newest of ``built`` (as CMake names them: "80", "90a", "100-virtual") that a GPU can run.

    A plain number holds machine code for its major version and PTX, which newer GPUs compile;
    "90a" runs on 9.0 alone, "100f" on its major version; "-real" has no PTX, "-virtual" only PTX.
    """
    major, minor = (int(part) for part in compute_capability.split("."))
    gpu = 10 * major + minor
    fitting: list[tuple[int, str]] = []
    for arch in built:
        match = _ARCHITECTURE.fullmatch(arch.strip())
        if match is None:
            continue
        version, feature, kind = int(match[1]), match[2], match[3]
        same_major = version // 10 == major and version <= gpu
        fits = {
            "a": version == gpu,
            "f": same_major,
            "": (same_major and kind != "-virtual") or (version <= gpu and kind != "-real"),
        }
        if fits[feature]:
            fitting.append((version, arch))
    return max(fitting)[1] if fitting else None
