"""Attention and int4 CUDA kernels that behave like ``jax.nn`` functions."""

from jax_baracuda._src import registry as _registry
from jax_baracuda._src.decode.api import flash_decode
from jax_baracuda._src.explain import KernelInfo, explain

__version__ = "0.1.0"
__all__ = ["KernelInfo", "__version__", "explain", "flash_decode"]

# An exported program names its kernels only by target, so importing the package is enough to run one.
_registry.register()
