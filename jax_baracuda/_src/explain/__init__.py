"""explain: which kernel a call would run, without running it. One function an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax_baracuda._src.explain import attention, cache, decode, int4, paged
from jax_baracuda._src.explain.info import KernelInfo

__all__ = ["KernelInfo", "explain"]


def explain(fn_name: str, *avals: Any, **options: Any) -> KernelInfo:
    """Which kernel ``getattr(jax_baracuda, fn_name)(*avals, **options)`` would run in this process.

    Nothing is run or compiled. Without a GPU it tells of the reference; ``implementation="cuda"``
    tells of the CUDA kernel on any machine.

    Args:
      fn_name: the name of a public function, such as "flash_attention".
      *avals: its array arguments: arrays, or anything with a shape and a dtype, such as
        ``jax.ShapeDtypeStruct``.
      **options: its keyword arguments, as for the call itself.

    Returns:
      A ``KernelInfo``.

    Raises:
      ValueError: for an unknown function.
      Exception: whatever the call itself would raise for its arguments.

    Example::

      >>> import jax, jax_baracuda
      >>> query = jax.ShapeDtypeStruct((2, 32, 128), "bfloat16")
      >>> cache = jax.ShapeDtypeStruct((2, 8, 4096, 128), "bfloat16")
      >>> jax_baracuda.explain("flash_decode", query, cache, cache, implementation="cuda").name
      'flash_decode_mma'
    """
    if fn_name not in _OPS:
        raise ValueError(f"fn_name is {fn_name!r}; supported are {', '.join(map(repr, _OPS))}.")
    return _OPS[fn_name](*avals, **options)


_OPS: dict[str, Callable[..., KernelInfo]] = {
    "apply_rope": cache.of_rows("apply_rope"),
    "dot_product_attention": attention.dot_product_attention,
    "flash_attention": attention.flash_attention,
    "flash_attention_varlen": attention.flash_attention_varlen,
    "flash_decode": decode.flash_decode,
    "int4_awq_matmul": int4.int4_awq_matmul,
    "int4_matmul": int4.int4_matmul,
    "kv_cache_append": cache.of_rows("kv_cache_append"),
    "merge_attention_states": cache.merge_attention_states,
    "paged_append": cache.of_rows("paged_append"),
    "paged_decode": paged.paged_decode,
    "paged_prefill": paged.paged_prefill,
}
