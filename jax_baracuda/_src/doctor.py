"""What is installed, what is there to run on, and which kernel serves which op."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.version import __version__ as jaxlib_version

from jax_baracuda._src import registry
from jax_baracuda._src.explain import explain
from jax_baracuda._src.int4.weight import Int4Weight

FIX_NO_BACKEND = "install jax's CUDA backend: pip install 'jax[cuda13]'"
FIX_NO_KERNELS = (
    "reinstall on this machine: pip install --force-reinstall --no-deps jax-baracuda; or name the "
    "architectures, e.g. JAX_BARACUDA_CUDA_ARCHS=90a pip install --force-reinstall --no-deps ."
)

# One typical call an op and dtype: which kernel serves it.
_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def environment(version: str) -> dict[str, Any]:
    """Versions, devices, the extension's build, and in one word what calls run on.

    Args:
      version: that of jax_baracuda.

    Returns:
      "versions", "devices", "extension", and "runs": "cuda", "reference" or "broken" with a
      "message" that says why, and a "fix" where there is something to fix.
    """
    extension = registry.register()
    problem = extension.problem
    if problem is None and registry.has_cuda_device() and registry.serving_architecture() is None:
        problem = f"they were built for {';'.join(registry.architectures())}, which it cannot run"
    return {
        "versions": {
            "jax_baracuda": version,
            "jax": jax.__version__,
            "jaxlib": jaxlib_version,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "devices": [
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "compute_capability": getattr(device, "compute_capability", None),
            }
            for device in jax.devices()
        ],
        "extension": {
            "kernels": sorted(extension.targets),
            "build": dict(extension.build),
            "problem": problem,
        },
        **_verdict(problem, gpu=registry.has_cuda_device(), driver=_has_nvidia_driver()),
    }


def _verdict(problem: str | None, *, gpu: bool, driver: bool) -> dict[str, str | None]:
    """What calls run on, why, and what to do about it."""
    if gpu and problem is None:
        return {"runs": "cuda", "message": "Ops run on their CUDA kernels.", "fix": None}
    if gpu:
        return {
            "runs": "broken",
            "message": f"There is a GPU, but no kernels that run on it: {problem}.",
            "fix": FIX_NO_KERNELS,
        }
    message = "No GPU that jax can see: ops run on the reference, plain jax.numpy."
    if driver:
        message += " There is an NVIDIA driver on this machine."
    return {"runs": "reference", "message": message, "fix": FIX_NO_BACKEND if driver else None}


def _has_nvidia_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


# The shapes of a typical call of every op: of floats, and the integers that follow them.
_TABLE = ((4096,), (9,), (8,))
_TYPICAL: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = {
    "flash_attention": (((2, 4096, 32, 128), *[(2, 4096, 8, 128)] * 2), ()),
    "flash_decode": (((8, 32, 128), *[(8, 8, 8192, 128)] * 2), ()),
    "paged_decode": (((8, 32, 128), *[(4096, 8, 16, 128)] * 2), _TABLE),
    "paged_prefill": (((512, 32, 128), *[(4096, 8, 16, 128)] * 2), _TABLE),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "flash_attention": {"is_causal": True},
    "paged_prefill": {"max_seqlen_q": 256},
}


def kernels() -> list[dict[str, Any]]:
    """The kernel of a typical call of every op, by dtype: the fields of KernelInfo."""
    found = []
    for op, (floats, integers) in _TYPICAL.items():
        for dtype in _DTYPES:
            avals = [jax.ShapeDtypeStruct(shape, dtype) for shape in floats]
            avals += [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in integers]
            if op == "paged_prefill":
                avals.insert(1, jax.ShapeDtypeStruct((9,), jnp.int32))
            info = explain(op, *avals, **_OPTIONS.get(op, {}))
            found.append(dataclasses.asdict(info))
    for dtype in _DTYPES:
        matrix = jax.ShapeDtypeStruct((4096, 14336), dtype)
        weight = jax.eval_shape(Int4Weight.quantize, matrix)
        info = explain("int4_matmul", jax.ShapeDtypeStruct((8, 4096), dtype), weight)
        found.append(dataclasses.asdict(info))
    return found
