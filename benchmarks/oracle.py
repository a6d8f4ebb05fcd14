"""What the benchmarks check against: float32, plain jnp, few rows of one request.

Sums of products without a matrix product, for which XLA would try kernels on the GPU that another
worker may be measuring on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The last rows of a history under a causal mask.

    Args:
      query: [R, Hq, D], the last R rows.
      key: [Hkv, K, D].
      value: [Hkv, K, D].

    Returns:
      float32 [R, Hq, D].
    """
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    rows, keys = q.shape[0], k.shape[1]
    q = q.reshape(rows, k.shape[0], -1, 1, q.shape[-1])
    logits = jnp.sum(q * k[:, None], axis=-1) * q.shape[-1] ** -0.5  # [R, Hkv, group, K]
    seen = jnp.arange(keys) <= jnp.arange(keys - rows, keys)[:, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], logits, -jnp.inf))
    return jnp.sum(weights[..., None] * v[:, None], axis=-2).reshape(query.shape)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding as JAX programs write it: [..., H, D] by positions [...], half-split."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def relative_error(got: jax.Array, expected: jax.Array) -> jax.Array:
    """|got - expected| / |expected|, Euclidean."""
    expected = expected.astype(jnp.float32)
    difference = got.astype(jnp.float32).reshape(expected.shape) - expected
    return jnp.linalg.norm(difference) / jnp.linalg.norm(expected)


def require(error: jax.Array, bound: float = 1e-2) -> float:
    """The error as a number; a wrong kernel has no time."""
    if not error < bound:
        raise RuntimeError(f"wrong result: relative error {float(error):.2e}")
    return float(error)
