"""The packed image of a weight: the one layout that every kernel reads.

[OC/64, IC/64, 2048 bytes]: strips of 64 output channels, tiles of 64 input channels, and in a tile
16 bytes for each of 128 threads, in the order in which the tensor core wants them as its A operand
(weights transposed): word j of a thread is its fragment of k-step j of `mma.m16n8k16` and of
`wgmma`. A byte holds two neighbouring output channels, the even one in the low nibble.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
