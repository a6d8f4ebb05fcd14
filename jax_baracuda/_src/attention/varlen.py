"""flash_attention_varlen, the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

import jax
from jax.typing import ArrayLike

from jax_baracuda._src import convert, validation
from jax_baracuda._src.attention import call, shapes
from jax_baracuda._src.attention.api import Options
from jax_baracuda._src.attention.call import Implementation

# What has a row a token or a bound a sequence: the pack that a call is has a dimension there.
_OF_A_PACK = ("query_segment_ids", "key_value_segment_ids", "cu_seqlens_q", "cu_seqlens_k")


@overload
def flash_attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> jax.Array: ...


@overload
def flash_attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]: ...


def flash_attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float | None = None,
    is_causal: bool = False,
    local_window_size: int | Sequence[int | None] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    bias: ArrayLike | None = None,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    query_segment_ids: ArrayLike | None = None,
    key_value_segment_ids: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: ArrayLike | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    implementation: Implementation = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """flash_attention of B sequences of different lengths that lie end to end, without padding.

    Sequence b is the query rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` and the keys
    ``cu_seqlens_k[b]`` to ``cu_seqlens_k[b + 1]``. Each is what a call of ``flash_attention`` with
    these rows alone would give: S and K, the diagonal, windows, lengths and dropout are those of
    the sequence, and b is its place in the batch. The bounds are read on the device, so one
    compiled program serves every packing of its T rows.

    Shapes: T query rows, Tk keys, B sequences; Hq, Hkv, D and Dv as in ``flash_attention``.

    Args:
      query: [T, Hq, D], float16, bfloat16 or float32.
      key: [Tk, Hkv, D], of the dtype of ``query``.
      value: [Tk, Hkv, Dv], of the dtype of ``query``.
      cu_seqlens_q: integer [B + 1], where the sequences start and end: the running sum of their
        lengths, from 0 to T. Values are clamped to 0..T and to be no less than the ones before.
      cu_seqlens_k: integer [B + 1], the same of the keys.
      max_seqlen_q: an int, the longest sequence's query rows. It sizes the grid of the kernels:
        with a smaller one results are right still, and slower (but a bias does not reach past it).
      max_seqlen_k: an int, the longest sequence's keys.
      scale: as in ``flash_attention``, as is every option that is not named here.
      is_causal: the diagonal of a sequence ends in its last row and its last key.
      local_window_size: (left, right) or an int for both.
      sink_tokens: the first so many keys of each sequence.
      sinks: [Hq] floats.
      alibi_slopes: [Hq] or [B, Hq] floats.
      logits_soft_cap: a positive number.
      bias: [B or 1, Hq or 1, max_seqlen_q or 1, max_seqlen_k] floats or bool, by row and key of the
        sequence.
      query_seq_lengths: integer [B]; rows of a sequence from there on see no key.
      key_value_seq_lengths: integer [B].
      query_segment_ids: integer [T], segments within the sequences.
      key_value_segment_ids: integer [Tk].
      dropout_rate: a Python number in [0, 1).
      dropout_seed: uint32 [2] or one JAX PRNG key.
      deterministic: whether gradients repeat bit for bit.
      return_lse: also return the log-sum-exp.
      implementation: None, "cuda" or "reference".

    Returns:
      ``out`` [T, Hq, Dv] in the dtype of ``query``; with ``return_lse`` also ``lse`` [Hq, T] in
      float32. Rows of no sequence give 0 and -inf.

    Raises:
      What ``flash_attention`` raises.

    Derivatives and transformations are those of ``flash_attention``; ``vmap`` gives every example
    its own bounds.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda import flash_attention_varlen
      >>> query = jnp.ones((600, 8, 64), jnp.bfloat16)
      >>> bounds = jnp.array([0, 100, 600])  # of 100 rows and of 500
      >>> flash_attention_varlen(
      ...     query, query, query, bounds, bounds, max_seqlen_q=500, max_seqlen_k=500
      ... ).shape
      (600, 8, 64)

    Source: T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691, whose packages name it so.
    """
    validation.check_implementation(implementation)
    query, key = convert.array("query", query), convert.array("key", key)
    value = convert.array("value", value)
    bounds_q = convert.array("cu_seqlens_q", cu_seqlens_q)
    bounds_k = convert.array("cu_seqlens_k", cu_seqlens_k)
    given = call.arrays(
        bias=bias,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        query_segment_ids=query_segment_ids,
        key_value_segment_ids=key_value_segment_ids,
    )
    options = shapes.check_options(
        query.shape[-1] if query.ndim else 1,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        dropout_rate=dropout_rate,
        deterministic=deterministic,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
    )
    shape = shapes.check_packed_operands(
        query,
        key,
        value,
        bounds_q,
        bounds_k,
        max_seqlen_q=options["max_seqlen_q"],
        max_seqlen_k=options["max_seqlen_k"],
        **given,
    )
    if implementation != "reference":
        shapes.check_head_dims(shape)
    seed = call.check_seed(dropout_seed, options["dropout_rate"])
    given |= {"cu_seqlens_q": bounds_q, "cu_seqlens_k": bounds_k}
    packs = {
        name: array[None] if array is not None and name in _OF_A_PACK else array
        for name, array in given.items()
    }
    out, lse = call.attend(
        shape, options, query[None], key[None], value[None], packs, seed, implementation
    )
    return (out[0], lse[0]) if return_lse else out[0]
