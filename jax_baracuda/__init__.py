"""CUDA attention kernels that are called as if they were ``jax.nn`` functions."""

__version__ = "0.1.0"

from jax_baracuda._src import registry as _registry
from jax_baracuda._src.attention.api import flash_attention
from jax_baracuda._src.attention.dot_product import dot_product_attention
from jax_baracuda._src.attention.varlen import flash_attention_varlen
from jax_baracuda._src.cache.api import kv_cache_append, paged_append
from jax_baracuda._src.cache.rope import apply_rope
from jax_baracuda._src.decode.api import flash_decode
from jax_baracuda._src.explain import KernelInfo, explain
from jax_baracuda._src.int4.api import int4_awq_matmul, int4_matmul
from jax_baracuda._src.merge.api import merge_attention_states
from jax_baracuda._src.paged.api import paged_decode, paged_prefill

# An exported program knows its kernels only by name: importing the package makes them known to XLA.
_registry.register()

__all__ = [
    "KernelInfo",
    "__version__",
    "apply_rope",
    "dot_product_attention",
    "explain",
    "flash_attention",
    "flash_attention_varlen",
    "flash_decode",
    "int4_awq_matmul",
    "int4_matmul",
    "kv_cache_append",
    "merge_attention_states",
    "paged_append",
    "paged_decode",
    "paged_prefill",
]
