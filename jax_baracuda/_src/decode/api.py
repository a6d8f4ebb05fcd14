"""flash_decode, the public function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert, validation
from jax_baracuda._src.decode import partition, shapes
from jax_baracuda._src.decode.primitive import flash_decode_call, reference_call


@overload
def flash_decode(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kv_lengths: ArrayLike | None = None,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: Literal[False] = False,
    implementation: Literal["cuda", "reference"] | None = None,
) -> jax.Array: ...


@overload
def flash_decode(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kv_lengths: ArrayLike | None = None,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: Literal[True],
    implementation: Literal["cuda", "reference"] | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def flash_decode(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kv_lengths: ArrayLike | None = None,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    implementation: Literal["cuda", "reference"] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attention of one query token a request over the request's key/value cache.

    For request b with n = ``kv_lengths[b]`` keys, query head h reads key/value head
    h // (Hq / Hkv), and

    .. math:: out = \sum_j p_j value_j, \quad p = \mathrm{softmax}_j(scale \; query \cdot key_j)

    over the visible keys j < n. The query is the last row of its history: it sits at position
    n - 1, from which windows and ALiBi count. Sums and the softmax are in float32. The lengths are
    read on the device, so one compiled step serves a cache that grows.

    Shapes: B requests, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv), K cache rows a
    request, D head dimension (1 to 256; multiples of 8 run at full speed). B and K may be 0.

    Args:
      query: [B, Hq, D], float16, bfloat16 or float32.
      key: [B, Hkv, K, D], or [B, K, Hkv, D] with ``kv_layout="NHD"``; the dtype of ``query``.
      value: like ``key``.
      kv_lengths: integer [B], how many rows of the cache each request has filled. Values are
        clamped to 0..K. Rows past the length have no effect, even if they hold NaN. None: all K.
      kv_layout: "HND" or "NHD", the order of the heads and rows of the caches.
      scale: factor on the logits, a Python number; None for 1/sqrt(D).
      local_window_size: (left, right) or an int for both, in keys: the query sees its own key and
        ``left`` keys before it. Nothing lies to its right, so ``right`` changes nothing. None: all.
      sink_tokens: the first so many keys stay visible outside the window too.
      sinks: [Hq] floats, an extra logit a head in the softmax denominator, with no value.
      alibi_slopes: [Hq] or [B, Hq] floats; adds -slope * (n - 1 - j) to the logit of key j, after
        the soft cap.
      logits_soft_cap: a positive number c turns each scaled logit x into c * tanh(x / c).
      num_splits: how many parts each cache is cut into, 1 to 1024, which are worked on in parallel.
        None picks by occupancy. A number makes the result of a request independent, bit for bit, of
        the other requests in the batch. It has no effect on the reference.
      return_lse: also return the log-sum-exp, to merge states over parts of a cache.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy.

    Returns:
      ``out`` [B, Hq, D] in the dtype of ``query``; with ``return_lse`` also ``lse`` [B, Hq] in
      float32, the natural log of the softmax denominator, ``sinks`` included. A request without
      keys (length 0) gives 0 and -inf.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for a dtype or head dimension that no kernel takes; when
        differentiated (``implementation="reference"`` has a derivative); when compiled
        for another platform with ``implementation="cuda"``; on a GPU, in ``shard_map`` over a part
        of the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel;
        it says how to install it.

    Transformations: ``vmap`` over queries that share a cache does not copy the cache. Under ``jit``
    the batch and the heads may be sharded, and are not gathered; ``shard_map`` serves any other
    split. ``jax.export`` for CUDA needs no GPU and wants ``disabled_checks=[jax.export.
    DisabledSafetyCheck.custom_call("jax_baracuda_flash_decode")]``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda import flash_decode
      >>> query = jnp.ones((2, 32, 128), jnp.bfloat16)
      >>> cache = jnp.ones((2, 8, 4096, 128), jnp.bfloat16)
      >>> out = jax.jit(flash_decode)(query, cache, cache, jnp.array([4096, 17]))
      >>> out.shape, out.dtype
      ((2, 32, 128), dtype(bfloat16))

    Sources: split caches, T. Dao et al., "Flash-Decoding for long-context inference", 2023; the
    online softmax, T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691; sink tokens, G. Xiao et al.,
    "Efficient Streaming Language Models with Attention Sinks", 2023, arXiv:2309.17453; ALiBi,
    O. Press et al., "Train Short, Test Long", 2021, arXiv:2108.12409.
    """
    validation.check_implementation(implementation)
    query = convert.array("query", query)
    key, value = convert.array("key", key), convert.array("value", value)
    lengths = convert.optional("kv_lengths", kv_lengths)
    extra_logits = convert.optional("sinks", sinks)
    slopes = convert.optional("alibi_slopes", alibi_slopes)
    shape = shapes.check_operands(
        query, key, value, lengths, extra_logits, slopes, kv_layout=kv_layout
    )
    options = shapes.check_options(
        shape.head_dim,
        kv_layout=kv_layout,
        scale=scale,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        num_splits=num_splits,
    )
    operands = compat.match_varying(
        query,
        key,
        value,
        convert.lengths(lengths, shape.capacity),
        convert.per_head(extra_logits),
        convert.per_head(slopes),
    )
    call: Callable[..., Any] = functools.partial(reference_call, **options)
    if implementation != "reference":
        insist = implementation == "cuda"
        call = functools.partial(flash_decode_call, **options, insist=insist)
    out, lse = partition.in_auto_mode(call, operands, nhd=options["nhd"])
    return (out, lse) if return_lse else out
