"""Which attention weights dropout keeps: a function of the seed and of absolute coordinates alone.

Philox4x32 with 7 rounds (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) in
uint32 arithmetic, so that it runs without 64-bit types. One draw of four words x serves 4 x 16
elements of a block of 32 rows and 64 columns: what one thread has of some of the rows or columns in
fragments of tensor cores. Every 16 x 16 elements of a block have the halves of words of their own,
x[k] + factor * x[k + 1], indices modulo 4: the factors are 0 and powers of one that makes random
numbers, so that any two of these words are as good as independent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


# P. L'Ecuyer, "Tables of linear congruential generators", 1999: kDropoutMix of the kernels
MIX = 0x2C9277B5
FACTORS = (0, *(pow(MIX, part, 2**32) for part in range(1, 8)))
STEPS = 2**15  # rates are multiples of one over it: kDropoutBits of the kernels


def threshold(rate: float) -> int:
    """15 bits below this drop their element; ``rate`` is below 1 in float32."""
    return min(int(float(np.float32(rate)) * STEPS + 0.5), STEPS - 1)


def philox(counter: Words, key: tuple[jax.Array, jax.Array]) -> Words:
    """The four random words of each counter: uint32 arrays that broadcast, and so the results."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(_WEYL[0]), k1 + jnp.uint32(_WEYL[1])
    return c0, c1, c2, c3


def keep_mask(seed: jax.Array, row: jax.Array, column: jax.Array, rate: float) -> jax.Array:
    """Whether an attention weight survives dropout.

    Args:
      seed: uint32 [..., 4], the words (seed0, seed1, head, batch).
      row: integers that broadcast with ``seed[..., 0]``: the query's place in its sequence.
      column: likewise, the key's place.
      rate: the probability of a drop, below 1.

    Returns:
      bool, of the shape that the arguments broadcast to.
    """
    row, column = row.astype(jnp.uint32), column.astype(jnp.uint32)
    part = ((row >> 4) & 1) * 4 + ((column >> 4) & 3)
    place = ((row >> 5) * 8 + (row & 7), (column >> 6) * 4 + ((column >> 1) & 3))
    words = philox((*place, seed[..., 2], seed[..., 3]), (seed[..., 0], seed[..., 1]))
    words = _mixed(words, _factor(part))
    lower, right = (row & 8) > 0, (column & 8) > 0
    upper_word, lower_word = (jnp.where(right, words[n + 1], words[n]) for n in (0, 2))
    word = jnp.where(lower, lower_word, upper_word)
    half = jnp.where((column & 1) > 0, word >> 16, word)
    keep: jax.Array = (half & (STEPS - 1)) >= jnp.uint32(threshold(rate))
    return keep


def _factor(part: jax.Array) -> jax.Array:
    """FACTORS[part], without a constant array: jax 0.10 cannot have one in what it shards."""
    factor = jnp.zeros_like(part)
    for number, value in enumerate(FACTORS):
        factor = jnp.where(part == number, np.uint32(value), factor)
    return factor


def _mixed(words: Words, factor: jax.Array) -> Words:
    x0, x1, x2, x3 = words
    return x0 + factor * x1, x1 + factor * x2, x2 + factor * x3, x3 + factor * x0


def _multiply(constant: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The high and the low word of the 64-bit product, from 16-bit halves."""
    a1, a0 = jnp.uint32(constant >> 16), jnp.uint32(constant & 0xFFFF)
    x1, x0 = x >> 16, x & 0xFFFF
    middle = a1 * x0 + ((a0 * x0) >> 16)
    rest = a0 * x1 + (middle & 0xFFFF)
    return a1 * x1 + (middle >> 16) + (rest >> 16), jnp.uint32(constant) * x
