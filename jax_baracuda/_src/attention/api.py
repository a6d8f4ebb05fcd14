"""flash_attention, the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, overload

import jax
from jax.typing import ArrayLike

from jax_baracuda._src import convert, validation
from jax_baracuda._src.attention import call, shapes
from jax_baracuda._src.attention.call import Implementation


class Options(TypedDict, total=False):
    """The keyword arguments of flash_attention and flash_attention_varlen but return_lse."""

    scale: float | None
    is_causal: bool
    local_window_size: int | Sequence[int | None] | None
    sink_tokens: int
    sinks: ArrayLike | None
    alibi_slopes: ArrayLike | None
    logits_soft_cap: float | None
    bias: ArrayLike | None
    query_seq_lengths: ArrayLike | None
    key_value_seq_lengths: ArrayLike | None
    query_segment_ids: ArrayLike | None
    key_value_segment_ids: ArrayLike | None
    dropout_rate: float
    dropout_seed: ArrayLike | None
    deterministic: bool
    implementation: Implementation


@overload
def flash_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> jax.Array: ...


@overload
def flash_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]: ...


def flash_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
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
    r"""Softmax attention in memory that grows with the length, not with its square.

    For query row i and head h, which reads key/value head h // (Hq / Hkv),

    .. math:: out_i = \sum_j p_{ij} value_j, \quad
              p = \mathrm{softmax}_j(cap(scale \; query_i \cdot key_j) + bias_{ij}
                                     - slope \, |d_i - j|)

    over the visible keys j, where d_i = i + K - S is the diagonal: it ends in the last row and the
    last key. Sums and the softmax are in float32, and float32 operands are multiplied to float32
    precision. Blocks of keys that no row of a block sees are skipped, forward and backward.

    Shapes: B batch, S query rows, K keys, Hq query heads, Hkv key/value heads (Hq a multiple of
    Hkv), D and Dv head dimensions (1 to 256; multiples of 8 run at full speed). Any size but those
    of heads may be 0.

    Args:
      query: [B, S, Hq, D], float16, bfloat16 or float32.
      key: [B, K, Hkv, D], of the dtype of ``query``.
      value: [B, K, Hkv, Dv], of the dtype of ``query``.
      scale: factor on the logits, a Python number; None for 1/sqrt(D).
      is_causal: row i sees no key past its diagonal d_i. (jax.nn.dot_product_attention, as does
        ``jax_baracuda.dot_product_attention``, lets it see none past i.)
      local_window_size: (left, right) or an int for both, in keys: row i sees ``left`` keys before
        d_i and ``right`` keys after it. None, alone or in the pair: all of them. With
        ``is_causal``, ``right`` is 0.
      sink_tokens: the first so many keys stay visible outside the window too, though not past a
        causal diagonal.
      sinks: [Hq] floats, an extra logit a head in the softmax denominator, with no value.
      alibi_slopes: [Hq] or [B, Hq] floats; adds -slope * |d_i - j| to the logits after the soft
        cap. Has no derivative.
      logits_soft_cap: a positive number c turns each scaled logit x into c * tanh(x / c).
      bias: [B or 1, Hq or 1, S or 1, K] floats, added to the logits after the soft cap; -inf hides
        a key. Or bool: False hides a key.
      query_seq_lengths: integer [B]; query rows from there on see no key. Values are clamped to
        0..S. The diagonal stays where it is.
      key_value_seq_lengths: integer [B]; keys from there on are hidden. Values are clamped to 0..K.
        What hidden rows hold has no effect, even if it is NaN.
      query_segment_ids: integer [B, S], values of int32. A row sees only keys of its own id.
      key_value_segment_ids: integer [B, K]; both ids must be given, or neither.
      dropout_rate: the probability with which a weight p is dropped, a Python number in [0, 1); the
        others are scaled by 1 / (1 - rate). What is dropped counts the nearest multiple of
        2^-15.
      dropout_seed: uint32 [2] or one JAX PRNG key (of which the first 64 bits count); required
        where the rate is not 0. What is dropped depends on the seed and on batch, head, row and key
        alone. Under ``vmap`` and ``shard_map`` every example and device counts its batch and heads
        from 0: fold its index into the seed to tell them apart.
      deterministic: whether gradients repeat bit for bit, at some cost. The output does in any
        case. XLA's flag --xla_gpu_deterministic_ops=true asks for it, too.
      return_lse: also return the log-sum-exp, to merge states over parts of the keys.
      implementation: None runs the CUDA kernels on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernels; "reference" is always plain jax.numpy.

    Returns:
      ``out`` [B, S, Hq, Dv] in the dtype of ``query``; with ``return_lse`` also ``lse`` [B, Hq, S]
      in float32, the natural log of the softmax denominator before dropout, ``sinks`` included. A
      row that sees no key gives 0 and -inf, and has no part in any gradient.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for a dtype or head dimension that no kernel takes; when
        ``alibi_slopes`` is differentiated, or anything twice (``implementation="reference"`` has
        every derivative); when compiled for another platform with ``implementation="cuda"``; on a
        GPU, in ``shard_map`` over a part of the mesh.
      TypeError: from jax, in forward mode (``jax.jvp``), again but for "reference".
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernels;
        it says how to install them.

    Derivatives: of query, key, value, sinks and a bias of floats, through ``out`` and ``lse``. The
    backward pass recomputes the weights from ``out`` and ``lse``, which are named "context" and
    "lse" for ``jax.checkpoint``: with
    ``policy=jax.checkpoint_policies.save_only_these_names("context", "lse")`` a layer keeps them
    and recomputes the rest without running the forward kernel again.

    Transformations: ``vmap`` over any operands folds into the batch. Under ``jit`` the batch and
    the heads may be sharded, and are not gathered; ``shard_map`` serves any other split.
    ``jax.export`` for CUDA needs no GPU and wants ``disabled_checks=[jax.export.
    DisabledSafetyCheck.custom_call("jax_baracuda_flash_attention"), ...]`` with the names of the
    backward kernels, ``jax_baracuda_flash_attention_backward`` and ``..._bias_grad``, if it has
    them.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda import flash_attention
      >>> query = jnp.ones((2, 1024, 32, 128), jnp.bfloat16)
      >>> key = value = jnp.ones((2, 1024, 8, 128), jnp.bfloat16)
      >>> out = flash_attention(query, key, value, is_causal=True, local_window_size=(256, 0))
      >>> out.shape, out.dtype
      ((2, 1024, 32, 128), dtype(bfloat16))

    Sources: T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691; sink tokens, G. Xiao et al.,
    "Efficient Streaming Language Models with Attention Sinks", 2023, arXiv:2309.17453; ALiBi,
    O. Press et al., "Train Short, Test Long", 2021, arXiv:2108.12409; the random numbers,
    J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    validation.check_implementation(implementation)
    query, key = convert.array("query", query), convert.array("key", key)
    value = convert.array("value", value)
    given = call.arrays(
        bias=bias,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        query_segment_ids=query_segment_ids,
        key_value_segment_ids=key_value_segment_ids,
    )
    shape = shapes.check_operands(query, key, value, **given)
    if implementation != "reference":
        shapes.check_head_dims(shape)
    options = shapes.check_options(
        shape.head_dim,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        dropout_rate=dropout_rate,
        deterministic=deterministic,
    )
    seed = call.check_seed(dropout_seed, options["dropout_rate"])
    out, lse = call.attend(shape, options, query, key, value, given, seed, implementation)
    return (out, lse) if return_lse else out
