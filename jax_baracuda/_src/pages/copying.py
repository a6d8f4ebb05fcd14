"""copy_pages: what copy-on-write asks of the device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@functools.partial(jax.jit, static_argnames="layers", donate_argnums=(0, 1))
def copy_pages(
    k_pages: jax.Array, v_pages: jax.Array, src: ArrayLike, dst: ArrayLike, *, layers: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Copies whole pages of a paged store, in place: the arguments are donated.

    Every source is read before any destination is written. In a caller's ``jit`` it is in place if
    the caller donates the stores.

    Args:
      k_pages: [P, Hkv, page_size, D] or [P, page_size, Hkv, D], any dtype; with P pages for each of
        several layers, [layers * P, ...] or [L, P, ...].
      v_pages: likewise.
      src: integers [N], as from ``PageAllocator.take_copies``.
      dst: integers [N], no two the same. Where ``src`` or ``dst`` is not from 0 to P - 1, as in
        padding, nothing is copied.
      layers: how many layers lie end to end along the axis of the pages. Each of them has its pages
        copied, as has each index of leading dimensions.

    Returns:
      The stores.

    Raises:
      ValueError: at trace time, for shapes or dtypes that do not fit; it names the argument.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda.paged import copy_pages
      >>> k_pages = jnp.arange(4.0).reshape(4, 1, 1, 1) * jnp.ones((4, 2, 16, 8))
      >>> src, dst = jnp.array([2, -1]), jnp.array([0, -1])
      >>> k_pages, v_pages = copy_pages(k_pages, 10 * k_pages, src, dst)
      >>> k_pages[:, 0, 0, 0].tolist(), v_pages[:, 0, 0, 0].tolist()
      ([2.0, 1.0, 2.0, 3.0], [20.0, 10.0, 20.0, 30.0])
    """
    src, dst = jnp.asarray(src), jnp.asarray(dst)
    for name, store in (("k_pages", k_pages), ("v_pages", v_pages)):
        if store.ndim < 4:
            raise ValueError(f"{name} has shape {store.shape}; it must be [..., P, Hkv, page, D].")
        if layers < 1 or store.shape[-4] % layers:
            raise ValueError(f"layers is {layers}; {name} has {store.shape[-4]} pages.")
    for name, pages in (("src", src), ("dst", dst)):
        if pages.ndim != 1 or pages.shape != src.shape:
            raise ValueError(
                f"{name} has shape {pages.shape}; src and dst must be [N], and src is {src.shape}."
            )
        if not np.issubdtype(pages.dtype, np.integer):
            raise ValueError(f"{name} has dtype {pages.dtype}; it must be an integer dtype.")
    return _copy(k_pages, src, dst, layers), _copy(v_pages, src, dst, layers)


def _copy(store: jax.Array, src: jax.Array, dst: jax.Array, layers: int) -> jax.Array:
    if not store.size or not src.size:
        return store
    *lead, total = store.shape[:-3]
    pages = total // layers
    real = (src >= 0) & (src < pages) & (dst >= 0) & (dst < pages)
    first = jnp.arange(0, total, pages)[:, None]
    src = (first + jnp.where(real, src, 0)).ravel()
    dst = jnp.where(real, first + dst, total).ravel()
    # Every axis up to the pages is indexed: a scatter over these needs no transpose of the store.
    outer = [jnp.arange(size) for size in lead]
    # The barrier keeps the reads out of the fusion of the writes, which then can be in place.
    rows = jax.lax.optimization_barrier(
        store.at[jnp.ix_(*outer, src)].get(mode="promise_in_bounds")
    )
    return store.at[jnp.ix_(*outer, dst)].set(rows, mode="drop")
