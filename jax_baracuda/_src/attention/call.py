"""From the checked arguments of a public function to operands, and to who runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert
from jax_baracuda._src.attention import gradient, partition, primitive, shapes
from jax_baracuda._src.validation import HasShape

Implementation = Literal["cuda", "reference"] | None
Arrays = Mapping[str, jax.Array | None]


def arrays(**given: ArrayLike | None) -> dict[str, jax.Array | None]:
    """The arguments as arrays; ValueError, by name, for what is none."""
    return {name: convert.optional(name, value) for name, value in given.items()}


def attend(
    shape: shapes.AttentionShape,
    options: shapes.AttentionOptions,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    given: Arrays,
    seed: jax.Array | None,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array]:
    """(out, lse) of arguments that were checked.

    Args:
      shape: their sizes.
      options: the static ones.
      query: [B, S, Hq, D], or packs [P, T, Hq, D].
      key: [B, K, Hkv, D].
      value: [B, K, Hkv, Dv].
      given: the optional arrays by the names of flash_attention_varlen's arguments; those that have
        a row a token or a bound a sequence with a leading dimension for the packs.
      seed: uint32 [2], or None without dropout; or the words of every sequence and head, as
        the kernels take them.
      implementation: as in flash_attention.
    """
    deterministic = options["deterministic"] or compat.deterministic_ops()
    options = {**options, "deterministic": deterministic}
    sequences = shape.batch * shape.sequences
    optional = {
        "bias": _bias(given["bias"]),
        "sinks": convert.per_head(given["sinks"]),
        "alibi_slopes": convert.per_head(given["alibi_slopes"]),
        "query_lengths": convert.lengths(given["query_seq_lengths"], shape.query_rows),
        "kv_lengths": convert.lengths(given["key_value_seq_lengths"], shape.keys),
        "query_segment_ids": _int32(given["query_segment_ids"]),
        "kv_segment_ids": _int32(given["key_value_segment_ids"]),
        "cu_seqlens_q": convert.lengths(given.get("cu_seqlens_q"), shape.query_rows),
        "cu_seqlens_k": convert.lengths(given.get("cu_seqlens_k"), shape.keys),
        "dropout_seed": _coordinates(seed, sequences, shape.q_heads),
    }
    operands = compat.match_varying(query, key, value, *(optional[n] for n in shapes.OPTIONS))
    call: Callable[..., Any] = functools.partial(primitive.forward_reference, **options)
    if implementation != "reference":
        insist = implementation == "cuda"
        params = tuple(dict(options, insist=insist).items())
        call = functools.partial(gradient.attention, params)
    specs = functools.partial(partition.result_specs, "forward")
    out, lse = partition.in_auto_mode(call, operands, specs)
    return out, lse


def check_seed(given: ArrayLike | None, dropout_rate: float) -> jax.Array | None:
    """The two words of the seed; None where nothing is dropped."""
    seed = convert.optional("dropout_seed", given)
    check_seed_shape(seed, dropout_rate)
    if seed is None or not dropout_rate:
        return None
    # The words of an "rbg" key after the second repeat what the first two know.
    return jax.random.key_data(seed)[:2] if _is_key(seed) else seed


def check_seed_shape(seed: HasShape | None, dropout_rate: float) -> None:
    """Raises ValueError unless there is a seed where one is needed."""
    what = "uint32 [2] or one JAX PRNG key"
    if seed is None and dropout_rate:
        raise ValueError(
            f"dropout_seed is None and dropout_rate is {dropout_rate:g}; it must be {what} then."
        )
    if seed is None or (_is_key(seed) and tuple(seed.shape) == ()):
        return
    if tuple(seed.shape) != (2,) or seed.dtype != jnp.uint32:
        raise ValueError(
            f"dropout_seed has shape {seed.shape} and dtype {seed.dtype}; it must be {what}."
        )


def _is_key(seed: HasShape) -> bool:
    return bool(jnp.issubdtype(seed.dtype, jax.dtypes.prng_key))


def _coordinates(seed: jax.Array | None, sequences: int, heads: int) -> jax.Array:
    """uint32 [NB, Hq, 4], the words (seed0, seed1, head, batch) of each, or empty.

    As data, they stay what they are when vmap or a mesh gives a kernel other sequences and heads.
    """
    if seed is None:
        return jnp.zeros((0,), jnp.uint32)
    if seed.ndim == 3:
        return seed
    head = jnp.arange(heads, dtype=np.uint32)[None, :]
    sequence = jnp.arange(sequences, dtype=np.uint32)[:, None]
    words = (seed[0], seed[1], head, sequence)
    return jnp.stack([jnp.broadcast_to(word, (sequences, heads)) for word in words], axis=-1)


def _bias(bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return jnp.zeros((0,), jnp.float32)
    return bias.astype(jnp.float32) if bias.dtype == jnp.float64 else bias


def _int32(given: jax.Array | None) -> jax.Array:
    return jnp.zeros((0,), jnp.int32) if given is None else given.astype(jnp.int32)
