"""explain for the products with four-bit weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from jax_baracuda._src import registry, validation
from jax_baracuda._src.explain import info
from jax_baracuda._src.int4 import shapes
from jax_baracuda._src.int4.weight import Int4Weight


def int4_matmul(
    x: Any, weight: Any, *, bias: Any = None, implementation: str | None = None
) -> info.KernelInfo:
    """Which kernel multiplies so many rows."""
    validation.check_implementation(implementation)
    shape = shapes.check_operands(info.aval(x), weight, info.aval(bias))
    by_kernel = shape.dtype in shapes.KERNEL_DTYPES
    if implementation == "cuda":
        shapes.check_kernel_dtype(shape)
    if not by_kernel or not info.runs_on_cuda(implementation):
        plain = info.reference("int4_matmul", shape.dtype, implementation)
        why = f"no kernel takes {shape.dtype}: the weight is dequantised, in plain jax.numpy"
        return plain if by_kernel else dataclasses.replace(plain, note=why)
    strips, tiles, _ = weight.packed.shape
    arch = registry.serving_architecture()
    return info.KernelInfo(
        op="int4_matmul",
        name=shapes.kernel_name(shape.rows, arch),
        implementation="cuda",
        arch=arch,
        dtype=shape.dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=False,
        workspace_bytes=shapes.workspace_bytes(shape.rows, strips, tiles),
        note=f"{shape.rows} rows, {shape.dtype} products, on tensor cores; the gradient of x "
        f"dequantises the weight{info.obstacle(registry.INT4_MATMUL)}",
    )


def int4_awq_matmul(
    activation: Any,
    weight_packed: Any,
    scales: Any,
    zeros: Any,
    *,
    group_size: int = 128,
    split_k_iters: int = 8,
) -> info.KernelInfo:
    """That of int4_matmul, after the weight is put into its image."""
    x, *operands = (info.aval(array) for array in (activation, weight_packed, scales, zeros))
    shapes.check_raw_operands(x, operands[0], split_k_iters)
    make = functools.partial(Int4Weight.from_packed, group_size=group_size)
    weight = jax.eval_shape(make, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands))
    found = int4_matmul(x, weight)
    note = f"{found.note}; every call puts the weight into the kernels' layout"
    return dataclasses.replace(found, op="int4_awq_matmul", note=note)
