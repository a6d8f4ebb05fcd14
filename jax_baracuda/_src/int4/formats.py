"""Where the checkpoint formats keep a weight's nibbles: from each of them to plain integers.

All of them hold a matrix w [IC, OC] as ``w(ic, oc) = (q(ic, oc) - z(G, oc)) * s(G, oc)``, where q
is a nibble and G the group of ic; eight nibbles lie in an int32, one every four bits. They differ
in which of the two axes is packed, in which order, and in what is added to the zero points. Here
each becomes ``Plain``: q and z one a byte, scales by group and channel.

Sources of the formats: AWQ (J. Lin et al., 2023, arXiv:2306.00978) and its kernels' packing orders
in llm-awq and AutoAWQ; GPTQ (E. Frantar et al., 2022, arXiv:2210.17323) as AutoGPTQ and GPTQModel
store it; compressed-tensors' "pack-quantized".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NIBBLES = 8  # in an int32

# AWQ's GEMM packing: channel 8 n + c lies in nibble AWQ_ORDER[c] of word n.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


class Plain(NamedTuple):
    """A quantised matrix in plain integers.

    Attributes:
      q: uint8 [IC, OC], 0 to 15.
      zeros: uint8 [R, OC], 0 to 16; R groups.
      scales: float [R, OC].
    """

    q: jax.Array
    zeros: jax.Array
    scales: jax.Array


def unpack(words: jax.Array, order: tuple[int, ...] = tuple(range(NIBBLES))) -> jax.Array:
    """Integers of 32 bits [..., n] to bytes [..., 8 n]; byte i is the nibble ``order[i % 8]``."""
    words = words.astype(jnp.int32).view(jnp.uint32)
    shifts = jnp.array(order, jnp.uint32) * 4
    nibbles = (words[..., None] >> shifts) & 15
    return nibbles.astype(jnp.uint8).reshape(*words.shape[:-1], NIBBLES * words.shape[-1])


def unpack_rows(words: jax.Array) -> jax.Array:
    """The same along the first axis: [n, m] to [8 n, m]."""
    return unpack(words.T).T


def from_packed(weight_packed: jax.Array, scales: jax.Array, zeros: jax.Array) -> Plain:
    """weight_packed [OC, IC/8], zeros [R, OC/8], scales [R, OC]."""
    return Plain(unpack(weight_packed).T, unpack(zeros), scales)


def from_awq_gemm(qweight: jax.Array, qzeros: jax.Array, scales: jax.Array) -> Plain:
    """qweight [IC, OC/8], qzeros [R, OC/8], scales [R, OC]: the usual AWQ checkpoint."""
    return Plain(unpack(qweight, AWQ_ORDER), unpack(qzeros, AWQ_ORDER), scales)


def from_awq_gemv(
    qweight: jax.Array, qzeros: jax.Array, scales: jax.Array, *, groups: int
) -> Plain:
    """qweight [OC, IC/8], qzeros [OC, zw], scales [OC, 8 zw]; the first R groups of both count."""
    return Plain(unpack(qweight).T, unpack(qzeros)[:, :groups].T, scales[:, :groups].T)


def from_gptq(
    qweight: jax.Array, qzeros: jax.Array, scales: jax.Array, *, zero_offset: int
) -> Plain:
    """qweight [IC/8, OC], qzeros [R, OC/8] less the offset, scales [R, OC]."""
    zeros = unpack(qzeros) + jnp.uint8(zero_offset)  # a byte: 15 and 1 are 16
    return Plain(unpack_rows(qweight), zeros, scales)


def from_compressed_tensors(
    weight_packed: jax.Array, weight_scale: jax.Array, zeros: jax.Array | None, *, rows: int
) -> Plain:
    """weight_packed [OC, ceil(IC/8)], weight_scale [OC, R], zeros as bytes [OC, R] or None.

    Numbers are signed and stored with 8 added, the zero points too: the 8s cancel.
    """
    scales = weight_scale.T
    stored = jnp.full(scales.shape, 8, jnp.uint8) if zeros is None else zeros.T
    return Plain(unpack(weight_packed).T[:rows], stored, scales)


def group_order(g_idx: np.ndarray, group_size: int) -> np.ndarray | None:
    """The order of input channels in which groups are consecutive; None where they are already.

    Raises ValueError unless every group has ``group_size`` channels (the last one may have fewer).
    """
    groups = np.asarray(g_idx).astype(np.int64)
    wanted = np.arange(groups.size) // group_size
    if np.array_equal(groups, wanted):
        return None
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], wanted):
        counts = np.bincount(groups[groups >= 0]) if groups.size else groups
        raise ValueError(
            f"g_idx names groups of {sorted(set(counts.tolist()))} channels; supported are groups "
            f"of group_size = {group_size}, the last one shorter, in any order of the channels."
        )
    return order.astype(np.int32)


def quantise(weight: jax.Array, *, group_size: int, symmetric: bool) -> Plain:
    """Rounds floats [IC, OC] to the nearest of 16 levels a group.

    Asymmetric: the levels span the least and the greatest number of the group, and 0. Symmetric:
    zero point 8, the largest magnitude at level 1 or 15.
    """
    rows, columns = weight.shape
    groups = max(1, -(-rows // group_size))
    wide = jnp.pad(weight.astype(jnp.float32), ((0, groups * group_size - rows), (0, 0)))
    grouped = wide.reshape(groups, group_size, columns)
    low = jnp.minimum(jnp.min(grouped, axis=1), 0)
    high = jnp.maximum(jnp.max(grouped, axis=1), 0)
    span = jnp.maximum(-low, high) / 7 if symmetric else (high - low) / 15
    # Rounded to its dtype first, so that the levels are those of the scale that is kept.
    kept = span.astype(weight.dtype)
    scales = jnp.where(kept == 0, 1, kept)
    exact = scales.astype(jnp.float32)
    zeros = jnp.full_like(exact, 8) if symmetric else jnp.clip(jnp.round(-low / exact), 0, 15)
    levels = jnp.round(grouped / exact[:, None]) + zeros[:, None]
    q = jnp.clip(levels, 0, 15).astype(jnp.uint8)
    return Plain(q.reshape(wide.shape)[:rows], zeros.astype(jnp.uint8), scales)
