"""The flash_decode primitive: its types and what it lowers to.

Operands: query, key, value, kv_lengths, sinks, alibi_slopes as the FFI target takes them (a missing
one is an empty array). Results: out, lse. Parameters, all static: shapes.DecodeOptions and `insist`
(on CUDA).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_baracuda._src import primitives, registry
from jax_baracuda._src.decode import batching, partition, shapes
from jax_baracuda._src.decode.reference import flash_decode_reference

Results = tuple[jax.Array, jax.Array]


def _abstract_eval(*operands: Any, nhd: bool, **_: Any) -> list[Any]:
    return primitives.state_avals(operands, partition.result_specs(operands, nhd=nhd))


def kernel_call(*operands: jax.Array, **options: Any) -> Results:
    """The CUDA kernel on the arrays of one device."""
    query, key = operands[:2]
    shape = shapes.decode_shape(query, key, nhd=options["nhd"])
    scratch = shapes.workspace_bytes(shape, options["num_splits"])
    workspace = jax.ShapeDtypeStruct((scratch,), jnp.uint8)
    call = jax.ffi.ffi_call(registry.FLASH_DECODE, (*primitives.state_types(query), workspace))
    out, lse, _ = call(*operands, **primitives.attributes(options))
    return out, lse


def reference_call(*operands: jax.Array, num_splits: int, **options: Any) -> Results:
    """The same in plain jnp, where the cache is not split."""
    del num_splits
    return flash_decode_reference(*operands, **options)


OP = primitives.Op(
    name="flash_decode",
    target=registry.FLASH_DECODE,
    static=tuple(shapes.DecodeOptions.__annotations__),
    abstract_eval=_abstract_eval,
    kernel=kernel_call,
    reference=reference_call,
    partitioned=partition.partitioned,
    batch=batching.batch,
)
flash_decode_p, local_flash_decode_p = primitives.define_pair(OP)


def flash_decode_call(*operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    primitive = primitives.choose((flash_decode_p, local_flash_decode_p))
    out, lse = primitive.bind(*operands, **params)
    return out, lse
