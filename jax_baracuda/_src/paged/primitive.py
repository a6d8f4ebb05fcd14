"""The primitives of paged_decode and paged_prefill: their types and what they lower to.

Operands: shapes.OPERANDS, in that order (a missing one is an empty array). Results: out, lse.
Parameters, all static: shapes.OPTIONS and `insist` (on CUDA).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from jax_baracuda._src import primitives, registry
from jax_baracuda._src.paged import batching, partition, reference, shapes

Results = tuple[jax.Array, ...]


def _abstract_eval(kind: shapes.Kind, *operands: Any, nhd: bool, **_: Any) -> list[Any]:
    return primitives.state_avals(operands, partition.result_specs(kind, operands, nhd=nhd))


def decode_kernel(*operands: jax.Array, **options: Any) -> Results:
    """paged_decode's CUDA kernel on the arrays of one device."""
    query, k_pages, _, page_indices, _, last_page_len, *_ = operands
    shape = shapes.paged_shape(query, k_pages, page_indices, last_page_len, nhd=options["nhd"])
    scratch = shapes.decode_workspace_bytes(shape, options["num_splits"])
    workspace = jax.ShapeDtypeStruct((scratch,), jnp.uint8)
    call = jax.ffi.ffi_call(registry.PAGED_DECODE, (*primitives.state_types(query), workspace))
    return tuple(call(*operands, **primitives.attributes(options)))[:2]


def prefill_kernel(*operands: jax.Array, portable: bool = False, **options: Any) -> Results:
    """paged_prefill's CUDA kernel on the arrays of one device.

    ``portable`` leaves out kernels of one architecture, for comparisons.
    """
    query, k_pages, v_pages, qo_indptr, *rest = operands
    workspace = jax.ShapeDtypeStruct((shapes.PREFILL_WORKSPACE_BYTES,), jnp.uint8)
    call = jax.ffi.ffi_call(registry.PAGED_PREFILL, (*primitives.state_types(query), workspace))
    attributes = primitives.attributes(options | {"portable": portable})
    return tuple(call(query, qo_indptr, k_pages, v_pages, *rest, **attributes))[:2]


def decode_reference(*operands: jax.Array, num_splits: int, **options: Any) -> Results:
    """paged_decode in plain jnp, where nothing is split."""
    del num_splits
    return reference.paged_decode_reference(*operands, **options)


def _op(kind: shapes.Kind, target: str, kernel: Any, plain: Any) -> primitives.Op:
    return primitives.Op(
        name=kind,
        target=target,
        static=shapes.OPTIONS[kind],
        abstract_eval=functools.partial(_abstract_eval, kind),
        kernel=kernel,
        reference=plain,
        partitioned=functools.partial(partition.partitioned, kind),
        batch=functools.partial(batching.batch, kind),
    )


OPS: dict[shapes.Kind, primitives.Op] = {
    "paged_decode": _op("paged_decode", registry.PAGED_DECODE, decode_kernel, decode_reference),
    "paged_prefill": _op(
        "paged_prefill", registry.PAGED_PREFILL, prefill_kernel, reference.paged_prefill_reference
    ),
}
PRIMITIVES: dict[shapes.Kind, tuple[Primitive, Primitive]] = {
    kind: primitives.define_pair(op) for kind, op in OPS.items()
}


def bind(kind: shapes.Kind, *operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    return tuple(primitives.choose(PRIMITIVES[kind]).bind(*operands, **params))
