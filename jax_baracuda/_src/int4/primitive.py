"""The int4_matmul primitive: its types, what it lowers to, its derivative.

Operands: x, packed, scales, zeros, bias as the FFI target takes them (a missing bias is an empty
array). Result: out. Parameters, all static: shapes.MatmulOptions and `insist` (on CUDA).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad

from jax_baracuda._src import compat, primitives, registry
from jax_baracuda._src.int4 import batching, image, partition, shapes
from jax_baracuda._src.int4.reference import dequantise, int4_matmul_reference

Results = tuple[jax.Array, ...]


def _abstract_eval(*operands: Any, out_features: int, **_: Any) -> tuple[Any]:
    x = operands[0]
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in operands))
    (spec,) = partition.result_specs(operands)
    return (compat.output_aval(x, (x.shape[0], out_features), x.dtype, spec, varying),)


def kernel_call(*operands: jax.Array, group_size: int, out_features: int) -> Results:
    """The CUDA kernel on the arrays of one device."""
    x, packed, scales = operands[:3]
    strips, tiles, _ = packed.shape
    scratch = shapes.workspace_bytes(x.shape[0], strips, tiles)
    call = jax.ffi.ffi_call(
        registry.INT4_MATMUL,
        (
            jax.ShapeDtypeStruct((x.shape[0], out_features), x.dtype),
            jax.ShapeDtypeStruct((scratch,), jnp.uint8),
        ),
    )
    one_group = scales.shape[0] == 1
    out, _ = call(*operands, group_size=np.int64(tiles * image.TILE if one_group else group_size))
    return (out,)


def reference_call(*operands: jax.Array, **options: Any) -> Results:
    """The same in plain jnp."""
    return (int4_matmul_reference(*operands, **options),)


OP = primitives.Op(
    name="int4_matmul",
    target=registry.INT4_MATMUL,
    static=tuple(shapes.MatmulOptions.__annotations__),
    abstract_eval=_abstract_eval,
    kernel=kernel_call,
    reference=reference_call,
    partitioned=partition.partitioned,
    batch=batching.batch,
)
int4_matmul_p, local_int4_matmul_p = primitives.define_pair(OP)


def _jvp(
    primitive: Primitive, primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    """The product is linear in x, and the bias is added. The weight is a constant."""
    out = primitive.bind(*primals, **params)
    x_dot, *_, bias_dot = tangents
    *weight, bias = primals[1:]
    parts = []
    if not isinstance(x_dot, ad.Zero):
        parts += primitive.bind(x_dot, *weight, jnp.zeros((0,), bias.dtype), **params)
    if not isinstance(bias_dot, ad.Zero) and bias_dot.size:
        parts.append(jnp.broadcast_to(bias_dot.astype(out[0].dtype), out[0].shape))
    zero = ad.Zero(jax.typeof(out[0]))
    return out, [functools.reduce(jnp.add, parts) if parts else zero]


def _transpose(
    cotangents: Sequence[Any],
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any,
    bias: Any,
    *,
    group_size: int,
    out_features: int,
    insist: bool,
) -> list[Any]:
    """dx = dy w^T, with the weight rounded once to the dtype of dy and sums in float32."""
    del insist, bias
    (cotangent,) = cotangents
    nothing = [None] * 4
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(x.aval), *nothing]
    matrix = dequantise(packed, scales, zeros, group_size=group_size, dtype=cotangent.dtype)
    dx = jnp.einsum(
        "mo,io->mi",
        cotangent,
        matrix[: x.aval.shape[1], :out_features],
        preferred_element_type=jnp.float32,
    )
    return [dx.astype(cotangent.dtype), *nothing]


for _primitive in (int4_matmul_p, local_int4_matmul_p):
    ad.primitive_jvps[_primitive] = functools.partial(_jvp, _primitive)
    ad.primitive_transposes[_primitive] = _transpose


def int4_matmul_call(*operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    return tuple(primitives.choose((int4_matmul_p, local_int4_matmul_p)).bind(*operands, **params))
