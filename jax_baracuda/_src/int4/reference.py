"""int4_matmul in plain jnp: the lowering of every platform but CUDA, and of float32 on all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_baracuda._src.int4 import image


def int4_matmul_reference(
    x: jax.Array,
    packed: jax.Array,
    scales: jax.Array,
    zeros: jax.Array,
    bias: jax.Array,
    *,
    group_size: int,
    out_features: int,
) -> jax.Array:
    """x [M, K] times the weight of the image, plus a bias [OC] or (0,): [M, OC] in x's dtype.

    The weight is exact, and products and sums are in float32, whatever the dtype of x. K may be
    less than the image's input channels, the rest of which then count as 0.
    """
    matrix = dequantise(packed, scales, zeros, group_size=group_size)
    out = jnp.dot(
        x.astype(jnp.float32),
        matrix[: x.shape[1], :out_features],
        precision=jax.lax.Precision.HIGHEST,
    )
    if bias.size:
        out = out + bias.astype(jnp.float32)
    return out.astype(x.dtype)


def dequantise(
    packed: jax.Array,
    scales: jax.Array,
    zeros: jax.Array,
    *,
    group_size: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """(q - z) * s in float32, then rounded to ``dtype``: [ICp, OCp]."""
    q = image.unpack(packed).astype(jnp.float32)

    def widen(part: jax.Array) -> jax.Array:
        """[R, OCp] to [ICp, OCp]."""
        return jnp.repeat(part.astype(jnp.float32), group_size, axis=0)[: q.shape[0]]

    matrix: jax.Array = ((q - widen(zeros)) * widen(scales)).astype(dtype)
    return matrix
