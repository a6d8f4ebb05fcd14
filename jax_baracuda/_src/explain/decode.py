"""explain for flash_decode, and what it has in common with paged_decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_baracuda._src import registry, validation
from jax_baracuda._src.decode import shapes
from jax_baracuda._src.explain import info


def flash_decode(
    query: Any,
    key: Any,
    value: Any,
    kv_lengths: Any = None,
    *,
    kv_layout: str = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: Any = None,
    alibi_slopes: Any = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> info.KernelInfo:
    del return_lse
    validation.check_implementation(implementation)
    operands = map(info.aval, (query, key, value, kv_lengths, sinks, alibi_slopes))
    shape = shapes.check_operands(*operands, kv_layout=kv_layout)
    options = shapes.check_options(
        shape.head_dim,
        kv_layout=kv_layout,
        scale=scale,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        num_splits=num_splits,
    )
    scratch = shapes.workspace_bytes(shape, options["num_splits"])
    return split_decode("flash_decode", shape.dtype, options["num_splits"], scratch, implementation)


def split_decode(
    op: str, dtype: str, splits: int, workspace_bytes: int, implementation: str | None
) -> info.KernelInfo:
    """flash_decode's kernel or the paged one; ``splits`` is 0 where it chooses them."""
    if not info.runs_on_cuda(implementation):
        return info.reference(op, dtype, implementation)
    name, why = f"{op}_mma", f"{dtype} products, on tensor cores"
    if dtype == "float32":
        name, why = f"{op}_simt", "float32 products, on CUDA cores"
    target = {"flash_decode": registry.FLASH_DECODE, "paged_decode": registry.PAGED_DECODE}[op]
    parts = f"{splits} parts" if splits else "parts chosen by occupancy"
    return info.KernelInfo(
        op=op,
        name=name,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=splits > 0,
        workspace_bytes=workspace_bytes,
        note=f"{why}; each cache in {parts}{info.obstacle(target)}",
    )
