"""explain for paged_decode and paged_prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_baracuda._src import registry, validation
from jax_baracuda._src.decode.shapes import check_options as check_decode_options
from jax_baracuda._src.explain import info
from jax_baracuda._src.explain.attention import products
from jax_baracuda._src.explain.decode import split_decode
from jax_baracuda._src.paged import shapes


def paged_decode(
    query: Any,
    k_pages: Any,
    v_pages: Any,
    page_indices: Any,
    page_indptr: Any,
    last_page_len: Any,
    *,
    sinks: Any = None,
    alibi_slopes: Any = None,
    kv_layout: str = "HND",
    implementation: str | None = None,
    **options: Any,
) -> info.KernelInfo:
    """The kernel of a paged_decode call."""
    validation.check_implementation(implementation)
    arrays = (query, k_pages, v_pages, page_indices, page_indptr, last_page_len)
    shape = _check(arrays, None, sinks, alibi_slopes, kv_layout)
    checked = check_decode_options(shape.head_dim, kv_layout=kv_layout, **options)
    splits = checked["num_splits"]
    scratch = shapes.decode_workspace_bytes(shape, splits)
    return split_decode("paged_decode", shape.dtype, splits, scratch, implementation)


def paged_prefill(
    query: Any,
    qo_indptr: Any,
    k_pages: Any,
    v_pages: Any,
    page_indices: Any,
    page_indptr: Any,
    last_page_len: Any,
    *,
    sinks: Any = None,
    alibi_slopes: Any = None,
    kv_layout: str = "HND",
    implementation: str | None = None,
    **options: Any,
) -> info.KernelInfo:
    """The kernel of a paged_prefill call."""
    op = "paged_prefill"
    validation.check_implementation(implementation)
    arrays = (query, k_pages, v_pages, page_indices, page_indptr, last_page_len)
    shape = _check(arrays, qo_indptr, sinks, alibi_slopes, kv_layout)
    shapes.check_prefill_options(shape.head_dim, kv_layout=kv_layout, **options)
    if not info.runs_on_cuda(implementation):
        return info.reference(op, shape.dtype, implementation)
    name, why = _prefill_kernel(shape)
    return info.KernelInfo(
        op=op,
        name=name,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=shape.dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=True,
        workspace_bytes=shapes.PREFILL_WORKSPACE_BYTES,
        note=f"{products(shape.dtype)}{why}{info.obstacle(registry.PAGED_PREFILL)}",
    )


def _prefill_kernel(shape: shapes.PagedShape) -> tuple[str, str]:
    """The kernel of paged_prefill; on a Hopper GPU, what keeps a call from its own kernel."""
    if registry.serving_architecture() != "90a":
        return "paged_prefill_mma", ""
    found = shapes.hopper_obstacles(shape)
    if not found:
        return "paged_prefill_wgmma", ""
    return "paged_prefill_mma", f" (paged_prefill_wgmma does not take {' or '.join(found)})"


def _check(
    arrays: Sequence[Any], qo_indptr: Any, sinks: Any, alibi_slopes: Any, kv_layout: str
) -> shapes.PagedShape:
    return shapes.check_operands(
        *map(info.aval, arrays),
        qo_indptr=info.aval(qo_indptr),
        sinks=info.aval(sinks),
        alibi_slopes=info.aval(alibi_slopes),
        kv_layout=kv_layout,
    )
