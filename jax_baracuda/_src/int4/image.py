"""The packed image of a weight: the one layout that every kernel reads.

[OC/64, IC/64, 2048 bytes]: strips of 64 output channels, tiles of 64 input channels, and in a tile
16 bytes for each of 128 threads, in the order in which the tensor core wants them as its A operand
(weights transposed): word j of a thread is its fragment of k-step j of `mma.m16n8k16` and of
`wgmma`. A byte holds two neighbouring output channels, the even one in the low nibble.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_baracuda._src.int4.formats import Plain

STRIP = 64  # output channels
TILE = 64  # input channels
TILE_BYTES = STRIP * TILE // 2

# How the axes of a tile are cut: input channel (j, kh, t, e), output channel (b, g, h).
_INPUT = (4, 2, 4, 2)
_OUTPUT = (4, 8, 2)


def padded(channels: int) -> int:
    """Channels rounded up to whole tiles."""
    return -(-channels // TILE) * TILE


def pack(q: jax.Array) -> jax.Array:
    """uint8 [IC, OC], values 0 to 15 -> [OCp/64, ICp/64, 2048]; padding is 0."""
    rows, columns = (padded(size) for size in q.shape)
    q = jnp.pad(q, ((0, rows - q.shape[0]), (0, columns - q.shape[1])))
    axes = q.reshape(rows // TILE, *_INPUT, columns // STRIP, *_OUTPUT)
    # [kt, j, kh, t, e, s, b, g, h] -> [s, kt, b, g, t, j, e, kh, h]
    axes = axes.transpose(5, 0, 6, 7, 3, 1, 4, 2, 8)
    image = axes[..., 0] | axes[..., 1] << 4
    return image.reshape(columns // STRIP, rows // TILE, TILE_BYTES)


def unpack(image: jax.Array) -> jax.Array:
    """The inverse: [OCp/64, ICp/64, 2048] -> uint8 [ICp, OCp]."""
    strips, tiles = image.shape[:2]
    j, kh, t, e = _INPUT
    b, g, _ = _OUTPUT
    nibbles = jnp.stack([image & 15, image >> 4], axis=-1)
    axes = nibbles.reshape(strips, tiles, b, g, t, j, e, kh, 2)
    axes = axes.transpose(1, 5, 7, 4, 6, 0, 2, 3, 8)
    return axes.reshape(tiles * TILE, strips * STRIP)


# Compiled as a whole, so that only bytes are written: the steps between are several times larger.
@functools.partial(jax.jit, static_argnames=("read", "group", "repeats", "options"))
def build(
    arrays: tuple[Any, ...],
    order: jax.Array | None,
    *,
    read: Callable[..., Plain],
    group: int,
    repeats: int,
    options: tuple[tuple[str, int], ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The image of a weight, its scales and its zero points, all padded.

    Args:
      arrays: of a checkpoint format.
      order: of the input channels, or None.
      read: ``read(*arrays, **options)`` gives the weight in plain integers.
      group: the kernels' group size.
      repeats: groups of the kernels in one of the checkpoint.
      options: items of the options of ``read``.
    """
    plain = read(*arrays, **dict(options))
    rows, columns = map(padded, plain.q.shape)
    groups = -(-rows // group)

    def widen(part: jax.Array) -> jax.Array:
        part = jnp.repeat(part, repeats, axis=0)[:groups]
        return jnp.pad(part, ((0, groups - part.shape[0]), (0, columns - part.shape[1])))

    q = plain.q if order is None else plain.q[order]
    return pack(q), widen(plain.scales), widen(plain.zeros)
