"""The only importer of the compiled extension: registers its kernels with XLA, or says why not.

Nothing here raises at import. A program can be lowered and exported for CUDA in a process that has
neither the extension nor a GPU; where there is a GPU, a missing kernel is an error that names the fix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

FLASH_DECODE = "jax_baracuda_flash_decode"
TARGETS = (FLASH_DECODE,)

_REINSTALL = (
    "reinstall on the machine with the GPU (`pip install --force-reinstall --no-deps jax_baracuda`), "
    "or name the architectures: `JAX_BARACUDA_CUDA_ARCHS=90a pip install ...` (`native`, or a list "
    "such as `80;90a`)"
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
    try:
        from jax_baracuda import _ffi
    except ImportError as error:
        return Extension(frozenset(), {}, f"the extension jax_baracuda._ffi is not there ({error})")

    done: set[str] = set()
    build: dict[str, str] = {}
    try:
        build = dict(_ffi.build_info())
        for target, stages in _ffi.registrations().items():
            _register_target(target, stages)
            done.add(target)
    except Exception as error:  # a broken extension must not break `import jax_baracuda`
        return Extension(frozenset(done), build,
                         f"the extension could not be registered ({type(error).__name__}: {error})")
    missing = sorted(set(TARGETS) - done)
    problem = None
    if not done:
        problem = "the extension was built without kernels (no CUDA architecture was asked for)"
    elif missing:
        problem = f"the extension is too old: it has no {', '.join(missing)}"
    return Extension(frozenset(done), build, problem)


def _register_target(target: str, stages: Any) -> None:
    jax.ffi.register_ffi_target(target, stages, platform="CUDA", api_version=1)


def require(target: str) -> None:
    """Raises RuntimeError if this process has a CUDA device but not this kernel."""
    extension = register()
    if target not in extension.targets and has_cuda_device():
        reason = extension.problem or f"the extension has no {target}"
        raise RuntimeError(
            f"jax_baracuda has no CUDA kernel {target} in this process: {reason}. To fix it, "
            f"{_REINSTALL}. `python -m jax_baracuda` shows what is installed; "
            "implementation='reference' runs plain jax.numpy meanwhile."
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
