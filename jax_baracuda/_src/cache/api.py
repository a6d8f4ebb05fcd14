"""paged_append and kv_cache_append, the public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert, validation
from jax_baracuda._src.cache import frequencies, partition, primitive, shapes

Stores = tuple[jax.Array, jax.Array]
StoresAndQuery = tuple[jax.Array, jax.Array, jax.Array]


@overload
def paged_append(
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    batch_indices: ArrayLike,
    positions: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: None = None,
    rope: Mapping[str, Any] | None = None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> Stores: ...


@overload
def paged_append(
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    batch_indices: ArrayLike,
    positions: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: ArrayLike,
    rope: Mapping[str, Any] | None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> StoresAndQuery: ...


def paged_append(
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    batch_indices: ArrayLike,
    positions: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: ArrayLike | None = None,
    rope: Mapping[str, Any] | None = None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> Stores | StoresAndQuery:
    """Writes new keys and values into the pages of their requests, in place under ``jit``.

    Token t of request b = ``batch_indices[t]`` at position n = ``positions[t]`` goes to row
    n % page_size of page ``page_indices[page_indptr[b] + n // page_size]``. Nothing else of the
    stores changes. The table is read on the device: one compiled (and captured) step serves all
    lengths and pages. With ``rope`` the keys are rotated on the way, and ``query`` is rotated by
    the same positions; all of it is one kernel launch.

    A token is dropped, and writes nothing, if its batch index is outside 0..B-1 (-1 marks padding),
    its position negative or past the pages of its request, or its page id outside 0..P-1. Two
    tokens with one destination leave either's bytes there, or a mix.

    Shapes: P pages of page_size rows, Hkv key/value heads, D head dimension of keys and queries,
    Dv that of values (any; multiples of 16 bytes run at full speed), T tokens, B requests, N
    entries of the table, L layers. T, P and N may be 0.

    Args:
      k_pages: [P, Hkv, page_size, D], or [P, page_size, Hkv, D] with ``kv_layout="NHD"``;
        [L, P, ...] with ``layer``. float16, bfloat16 or float32.
      v_pages: the same with Dv.
      key: [T, Hkv, D], in the dtype of the stores.
      value: [T, Hkv, Dv].
      batch_indices: integer [T], the request of each token.
      positions: integer [T], where it stands in its request, from 0.
      page_indices: integer [N], page ids.
      page_indptr: integer [B + 1]: the pages of request b are ``page_indices[page_indptr[b] :
        page_indptr[b + 1]]``.
      kv_layout: "HND" or "NHD", the order of the heads and rows of a page.
      query: [T, Hq, D] to be rotated; needs ``rope``. Dropped tokens are rotated, too.
      rope: None, or a mapping of ``apply_rope``'s options: ``theta``, ``interleaved``, ``scaling``,
        ``rotary_dim``. ``{}`` is their defaults.
      layer: an integer scalar, which may be traced: the layer of stacked stores to write. One
        outside 0..L-1 writes nothing. In a scan over layers, carry the stacked stores and give the
        layer's number: then nothing is copied.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy.

    Returns:
      ``(k_pages, v_pages)``, and the rotated query if there is one. Give the stores to ``jit`` as
      donated arguments, or carry them in a loop: then they are written where they are. Give them as
      they are, too: XLA copies a store that is not donated, and one that is reshaped between the
      argument (or the loop) and this call.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for another dtype; when differentiated (``apply_rope`` and
        ``implementation="reference"`` have derivatives); in ``vmap`` over rows but not over the
        stores; when compiled for another platform with ``implementation="cuda"``; on a GPU, in
        ``shard_map`` over a part of the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel.

    Under ``jit`` the heads may be sharded, and are not gathered.

    Example::

      >>> import functools, jax, jax.numpy as jnp
      >>> from jax_baracuda import paged_append
      >>> store = lambda: jnp.zeros((16, 8, 4, 128), jnp.bfloat16)  # 16 pages of 4 rows
      >>> rows = jnp.ones((3, 8, 128), jnp.bfloat16)
      >>> step = jax.jit(functools.partial(paged_append, rope={}), donate_argnums=(0, 1))
      >>> k_pages, v_pages = step(
      ...     store(), store(), rows, rows,
      ...     jnp.array([0, 1, -1]),   # a token of each request, and padding
      ...     jnp.array([4, 0, 0]),    # the first opens request 0's second page
      ...     jnp.array([7, 2, 9]),    # request 0 has pages 7 and 2, request 1 page 9
      ...     jnp.array([0, 2, 3]))
      >>> bool((v_pages[2, :, 0] == 1).all()), float(v_pages.sum())
      (True, 2048.0)

    Sources: paged caches, W. Kwon et al., "Efficient Memory Management for Large Language Model
    Serving with PagedAttention", 2023, arXiv:2309.06180; the page table's format, Z. Ye et al.,
    "FlashInfer", 2025, arXiv:2501.01005; rotary embeddings, see ``apply_rope``.
    """
    validation.check_implementation(implementation)
    k_pages, v_pages = convert.array("k_pages", k_pages), convert.array("v_pages", v_pages)
    key, value = convert.array("key", key), convert.array("value", value)
    rotated, which = convert.optional("query", query), convert.optional("layer", layer)
    table = {
        "batch_indices": convert.array("batch_indices", batch_indices),
        "positions": convert.array("positions", positions),
        "page_indices": convert.array("page_indices", page_indices),
        "page_indptr": convert.array("page_indptr", page_indptr),
    }
    nhd = shapes.check_paged_append(
        k_pages, v_pages, key, value, rotated, **table, layer=which, kv_layout=kv_layout
    )
    rotation = shapes.check_rope(rope, rotated, k_pages.shape[-1])
    operands = [k_pages, v_pages, key, value, *_query_and_frequencies(rotated, rotation)]
    operands += [*map(convert.int32, table.values()), _layers(which)]
    results = _call("paged_append", operands, rotation, nhd=nhd, implementation=implementation)
    return results if rotated is not None else results[:2]


@overload
def kv_cache_append(
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    lengths: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: None = None,
    rope: Mapping[str, Any] | None = None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> Stores: ...


@overload
def kv_cache_append(
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    lengths: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: ArrayLike,
    rope: Mapping[str, Any] | None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> StoresAndQuery: ...


def kv_cache_append(
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    lengths: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    query: ArrayLike | None = None,
    rope: Mapping[str, Any] | None = None,
    layer: ArrayLike | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> Stores | StoresAndQuery:
    """Writes new keys and values behind those of each request, in place under ``jit``.

    Row t of request b goes to row ``lengths[b] + t`` of its cache, which is also its position for
    ``rope``. Nothing else of the caches changes; rows before 0 or from Kmax on are dropped. The
    lengths are read on the device. With ``rope`` the keys are rotated on the way, and ``query`` is
    rotated by the same positions; all of it is one kernel launch.

    Shapes: B requests, Hkv key/value heads, Kmax rows a cache, D head dimension of keys and
    queries, Dv that of values (any; multiples of 16 bytes run at full speed), T new rows a request,
    L layers.

    Args:
      k_cache: [B, Hkv, Kmax, D], or [B, Kmax, Hkv, D] with ``kv_layout="NHD"``; [L, B, ...] with
        ``layer``. float16, bfloat16 or float32.
      v_cache: the same with Dv.
      key: [B, Hkv, T, D], or [B, T, Hkv, D] with ``kv_layout="NHD"``, in the dtype of the caches.
      value: the same with Dv.
      lengths: integer [B], how many rows each request has.
      kv_layout: "HND" or "NHD", the order of the heads and rows.
      query: [B, Hq, T, D], or [B, T, Hq, D] with ``kv_layout="NHD"``, to be rotated; needs
        ``rope``.
      rope: None, or a mapping of ``apply_rope``'s options: ``theta``, ``interleaved``, ``scaling``,
        ``rotary_dim``. ``{}`` is their defaults.
      layer: an integer scalar, which may be traced: the layer of stacked caches to write. One
        outside 0..L-1 writes nothing. In a scan over layers, carry the stacked caches and give the
        layer's number: then nothing is copied.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy.

    Returns:
      ``(k_cache, v_cache)``, and the rotated query if there is one. Give the caches to ``jit`` as
      donated arguments, or carry them in a loop: then they are written where they are. Give them as
      they are, too: XLA copies a cache that is not donated, and one that is reshaped between the
      argument (or the loop) and this call.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for another dtype; when differentiated (``apply_rope`` and
        ``implementation="reference"`` have derivatives); in ``vmap`` over rows but not over the
        caches; when compiled for another platform with ``implementation="cuda"``; on a GPU, in
        ``shard_map`` over a part of the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel.

    Under ``jit`` the batch and the heads may be sharded, and are not gathered.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda import kv_cache_append
      >>> cache = lambda: jnp.zeros((2, 8, 1024, 128), jnp.bfloat16)
      >>> row = jnp.ones((2, 8, 1, 128), jnp.bfloat16)
      >>> append = jax.jit(kv_cache_append, donate_argnums=(0, 1))
      >>> k_cache, v_cache = append(cache(), cache(), row, row, jnp.array([5, 0]))
      >>> bool((k_cache[0, :, 5] == 1).all()), float(k_cache.sum())
      (True, 2048.0)

    Sources: rotary embeddings and their scalings, see ``apply_rope``.
    """
    validation.check_implementation(implementation)
    k_cache, v_cache = convert.array("k_cache", k_cache), convert.array("v_cache", v_cache)
    key, value = convert.array("key", key), convert.array("value", value)
    rotated, which = convert.optional("query", query), convert.optional("layer", layer)
    filled = convert.array("lengths", lengths)
    nhd = shapes.check_cache_append(
        k_cache,
        v_cache,
        key,
        value,
        rotated,
        lengths=filled,
        layer=which,
        kv_layout=kv_layout,
    )
    rotation = shapes.check_rope(rope, rotated, k_cache.shape[-1])
    operands = [k_cache, v_cache, key, value, *_query_and_frequencies(rotated, rotation)]
    operands += [convert.int32(filled), _layers(which)]
    results = _call("kv_cache_append", operands, rotation, nhd=nhd, implementation=implementation)
    return results if rotated is not None else results[:2]


def _layers(layer: jax.Array | None) -> jax.Array:
    """int32 [1], or empty. A store is never reshaped: before an operand that a call writes in
    place, XLA makes a copy of every reshape."""
    return jnp.zeros((0,), jnp.int32) if layer is None else convert.int32(layer).reshape(1)


def _query_and_frequencies(
    query: jax.Array | None, rotation: frequencies.Rotation | None
) -> list[jax.Array]:
    """The operands that may be missing."""
    nothing = jnp.zeros((0,), jnp.float32)
    return [
        nothing if query is None else query,
        nothing if rotation is None else jnp.asarray(rotation.inv_freq),
    ]


def _call(
    kind: primitive.Kind,
    operands: Sequence[jax.Array],
    rotation: frequencies.Rotation | None,
    *,
    nhd: bool,
    implementation: str | None,
) -> StoresAndQuery:
    options = shapes.rotation_options(rotation) | {"nhd": nhd}
    call: Callable[..., Any] = functools.partial(primitive.OPS[kind].reference, **options)
    if implementation != "reference":
        insist = implementation == "cuda"
        call = functools.partial(primitive.bind, kind, **options, insist=insist)
    operands = compat.match_varying(*operands)
    k_store, v_store, query = partition.in_auto_mode(kind, call, operands, nhd=nhd)
    return k_store, v_store, query
