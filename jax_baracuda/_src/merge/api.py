"""merge_attention_states, the public function: elementwise, so XLA's own fusion is the kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import convert, validation


def merge_attention_states(
    out_a: ArrayLike, lse_a: ArrayLike, out_b: ArrayLike, lse_b: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    r"""The attention over two disjoint sets of keys together, from the attention over each.

    .. math:: lse = \log(e^{lse_a} + e^{lse_b}), \quad
              out = e^{lse_a - lse} \, out_a + e^{lse_b - lse} \, out_b

    in float32. A state whose log-sum-exp is -inf saw no key: the other one is returned unchanged,
    and its ``out`` is not looked at. Two of them give 0 and -inf. The operation is associative and
    commutative to rounding, so any number of states can be merged in any order::

        functools.reduce(lambda a, b: merge_attention_states(*a, *b), states)

    It serves caches that are split over devices (gather the states, which are small, and merge),
    ring attention, and prefixes that requests share (``jax_baracuda.paged.shared_prefix_decode``).

    Args:
      out_a: [..., H, D], float16, bfloat16 or float32: normalised attention outputs, as every op of
        this package returns them.
      lse_a: [..., H] floats, the natural log of the softmax denominators of ``out_a``. The ops
        return it with ``return_lse=True``; that of ``flash_attention`` is [B, H, S] and wants
        ``lse.swapaxes(1, 2)`` here. A learnable sink must be in one of the states only.
      out_b: like ``out_a``; its dtype may differ.
      lse_b: like ``lse_a``.

    Returns:
      ``out`` [..., H, D] in the dtype of ``out_a``, and ``lse`` [..., H] in float32.

    Raises:
      ValueError: at trace time, for shapes that do not fit and for dtypes that are not floats; it
        names the argument, what was given and what is supported.
      NotImplementedError: at trace time, for another floating-point dtype.

    Transformations: all of jax's, since this is plain jax.numpy; differentiable in every argument,
    to any order. The gradient of a state that saw no key is 0. The derivative keeps the four
    arguments and nothing else.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda import flash_decode, merge_attention_states
      >>> query = jnp.ones((2, 32, 128), jnp.bfloat16)
      >>> cache = jnp.ones((2, 8, 4096, 128), jnp.bfloat16)
      >>> first = flash_decode(query, cache[:, :, :1000], cache[:, :, :1000], return_lse=True)
      >>> rest = flash_decode(query, cache[:, :, 1000:], cache[:, :, 1000:], return_lse=True)
      >>> out, lse = merge_attention_states(*first, *rest)
      >>> out.shape, out.dtype, lse.shape
      ((2, 32, 128), dtype(bfloat16), (2, 32))

    Sources: the online softmax, M. Milakov and N. Gimelshein, 2018, arXiv:1805.02867; attention
    states as a monoid, Z. Ye et al., "Cascade Inference: Memory Bandwidth Efficient Shared Prefix
    Batch Decoding", FlashInfer, 2024.
    """
    out_a, lse_a = convert.array("out_a", out_a), convert.array("lse_a", lse_a)
    out_b, lse_b = convert.array("out_b", out_b), convert.array("lse_b", lse_b)
    _check(out_a, lse_a, out_b, lse_b)
    out, lse = _merge(out_a, lse_a, out_b, lse_b)
    return out, lse


def _check(out_a: jax.Array, lse_a: jax.Array, out_b: jax.Array, lse_b: jax.Array) -> None:
    """Raises ValueError or NotImplementedError by name."""
    if out_a.ndim < 1:
        raise ValueError("out_a has shape (); it must be [..., H, D].")
    if out_b.shape != out_a.shape:
        raise ValueError(f"out_b has shape {out_b.shape} and out_a {out_a.shape}; both must agree.")
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if lse.shape != out_a.shape[:-1]:
            raise ValueError(
                f"{name} has shape {lse.shape} and out_a {out_a.shape}; it must be that without "
                f"the last dimension, {out_a.shape[:-1]}."
            )
    arrays = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {array.dtype}; supported are {', '.join(validation.DTYPES)}."
            )
        if validation.dtype_name(array) not in validation.DTYPES:
            raise NotImplementedError(
                f"{name} has dtype {array.dtype}; supported are {', '.join(validation.DTYPES)}."
            )


# One kernel, also where the caller does not jit. Rematerialised, because a derivative would keep
# float32 copies of both outputs, and to compute it again costs nothing: memory is the bottleneck.
@jax.jit
@functools.partial(jax.checkpoint, prevent_cse=False)
def _merge(
    out_a: jax.Array, lse_a: jax.Array, out_b: jax.Array, lse_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    lse_a, lse_b = lse_a.astype(jnp.float32), lse_b.astype(jnp.float32)
    top = jnp.maximum(lse_a, lse_b)
    # The results do not depend on `top`, so neither do their derivatives; -inf - -inf is NaN.
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    weight_a, weight_b = jnp.exp(lse_a - top), jnp.exp(lse_b - top)
    total = weight_a + weight_b
    empty = total == 0
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, -jnp.inf, top + jnp.log(total))

    def weighted(weight: jax.Array, out: jax.Array) -> jax.Array:
        weight = weight[..., None]  # where it is 0 the output may be anything, and 0 * NaN is NaN
        return weight * jnp.where(weight > 0, out.astype(jnp.float32), 0)

    out = (weighted(weight_a, out_a) + weighted(weight_b, out_b)) / total[..., None]
    return out.astype(out_a.dtype), lse
