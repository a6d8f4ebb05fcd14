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


def kernels() -> list[dict[str, Any]]:
    """The kernel of a typical call of every op, by dtype: the fields of KernelInfo."""
    found = []
    for dtype in _DTYPES:
        query = jax.ShapeDtypeStruct((2, 4096, 32, 128), dtype)
        key = jax.ShapeDtypeStruct((2, 4096, 8, 128), dtype)
        found.append(explain("flash_attention", query, key, key, is_causal=True))
    for dtype in _DTYPES:
        query = jax.ShapeDtypeStruct((8, 32, 128), dtype)
        cache = jax.ShapeDtypeStruct((8, 8, 8192, 128), dtype)
        found.append(explain("flash_decode", query, cache, cache))
    return [dataclasses.asdict(info) for info in found]
