"""The flash_decode primitive: types, lowerings, batching, and a clear refusal to differentiate.

Operands: query, key, value, kv_lengths, sinks, alibi_slopes as the FFI target takes them (a missing
one is an empty array). Results: out, lse. Parameters, all static: shapes.DecodeOptions and `insist`
(on CUDA). Nothing here asks a device anything, so a program can be lowered for CUDA where there is
none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_baracuda._src import compat, registry
from jax_baracuda._src.decode import partition, shapes
from jax_baracuda._src.decode.reference import flash_decode_reference

Results = tuple[jax.Array, jax.Array]
Call = Callable[..., Results]


def _abstract_eval(*operands: Any, nhd: bool, **_: Any) -> tuple[Any, Any]:
    query = operands[0]
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in operands))
    out, lse = partition.result_specs(operands, nhd=nhd)
    return (
        compat.output_aval(query, query.shape, query.dtype, out, varying),
        compat.output_aval(query, query.shape[:2], np.float32, lse, varying),
    )


def kernel_call(*operands: jax.Array, **options: Any) -> Results:
    """The CUDA kernel on the arrays of one device."""
    query, key = operands[:2]
    scratch = shapes.workspace_bytes(
        shapes.decode_shape(query, key, nhd=options["nhd"]), options["num_splits"]
    )
    call = jax.ffi.ffi_call(
        registry.FLASH_DECODE,
        (
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(query.shape[:2], jnp.float32),
            jax.ShapeDtypeStruct((scratch,), jnp.uint8),
        ),
    )
    out, lse, _ = call(
        *operands,
        nhd=options["nhd"],
        scale=np.float32(options["scale"]),
        window_left=np.int64(options["window_left"]),
        sink_tokens=np.int64(options["sink_tokens"]),
        logits_soft_cap=np.float32(options["logits_soft_cap"]),
        num_splits=np.int64(options["num_splits"]),
    )
    return out, lse


def reference_call(*operands: jax.Array, num_splits: int, **options: Any) -> Results:
    """The same in plain jnp, where the cache is not split."""
    del num_splits
    return flash_decode_reference(*operands, **options)


def _default_lowering(*operands: jax.Array, insist: bool, **options: Any) -> Results:
    if insist:
        raise NotImplementedError(
            "flash_decode: implementation is 'cuda' and this program is compiled for another "
            "platform; supported there are None and 'reference'."
        )
    return reference_call(*operands, **options)


def _refuse_to_differentiate(primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise NotImplementedError(
        "flash_decode is for inference and has no derivative. Supported is flash_decode with "
        "implementation='reference', which is plain jax.numpy."
    )


def _batch(
    primitive: Primitive, args: Sequence[jax.Array], dims: Sequence[int | None], **params: Any
) -> tuple[Any, Any]:
    """vmap folds the mapped axis into the head group if the requests share a cache, else into B."""
    size = next(a.shape[dim] for a, dim in zip(args, dims, strict=True) if dim is not None)
    bind = functools.partial(primitive.bind, **params)
    if size and all(dim is None for dim in dims[1:4]):
        kv_heads = args[1].shape[2 if params["nhd"] else 1]
        return _fold_into_group(bind, size, kv_heads, args, dims)
    return _fold_into_batch(bind, size, args, dims)


def _fold_into_group(
    bind: Callable[..., Any],
    size: int,
    kv_heads: int,
    args: Sequence[jax.Array],
    dims: Sequence[int | None],
) -> tuple[Any, Any]:
    """N queries on one cache are N times the query heads: no copy of the cache, and one read."""

    def fold(array: jax.Array, dim: int | None) -> jax.Array:
        """[B, Hq, ...], mapped or not -> [B, Hkv * N * group, ...]."""
        if _is_missing(array):
            return array
        array = _map_at(0, array, dim, size)
        batch, q_heads, *rest = array.shape[1:]
        split = array.reshape(size, batch, kv_heads, q_heads // kv_heads, *rest)
        return jnp.moveaxis(split, 0, 2).reshape(batch, size * q_heads, *rest)

    def unfold(array: jax.Array) -> jax.Array:
        """[B, Hkv * N * group, ...] -> [N, B, Hq, ...]."""
        batch, heads, *rest = array.shape
        split = array.reshape(batch, kv_heads, size, heads // size // kv_heads, *rest)
        return jnp.moveaxis(split, 2, 0).reshape(size, batch, heads // size, *rest)

    query, key, value, lengths, *per_head = args
    per_head = [fold(array, dim) for array, dim in zip(per_head, dims[4:], strict=True)]
    out, lse = bind(fold(query, dims[0]), key, value, lengths, *per_head)
    return (unfold(out), unfold(lse)), (0, 0)


def _fold_into_batch(
    bind: Callable[..., Any], size: int, args: Sequence[jax.Array], dims: Sequence[int | None]
) -> tuple[Any, Any]:
    """N batches of B requests are N * B requests."""
    batch = _map_at(0, args[0], dims[0], size).shape[1]
    # Next to the batch on either side, the mapped axis of a cache folds without moving any data.
    at = 1 if dims[1] == dims[2] == 1 else 0
    lead = (batch, size) if at else (size, batch)

    def fold(index: int, array: jax.Array, dim: int | None) -> jax.Array:
        one_row = index >= 4 and dim is None and array.shape[0] == 1
        if _is_missing(array) or one_row:  # a row [1, Hq] holds for every request
            return array
        array = _map_at(at, array, dim, size)
        rest = array.shape[2:]
        return jnp.broadcast_to(array, (*lead, *rest)).reshape(size * batch, *rest)

    results = bind(
        *(
            fold(index, array, dim)
            for index, (array, dim) in enumerate(zip(args, dims, strict=True))
        )
    )
    return [array.reshape(*lead, *array.shape[1:]) for array in results], (at, at)


def _map_at(at: int, array: jax.Array, dim: int | None, size: int) -> jax.Array:
    """``array`` with its mapped axis, which it may lack, at ``at``."""
    if dim is not None:
        return jnp.moveaxis(array, dim, at)
    array = jnp.expand_dims(array, at)
    return jnp.broadcast_to(array, (*array.shape[:at], size, *array.shape[at + 1 :]))


def _is_missing(array: jax.Array) -> bool:
    """Whether an optional operand was not given: only then is it one empty dimension."""
    return array.shape == (0,)


def _define(name: str, on_cuda: Call) -> Primitive:
    """A primitive that lowers to ``on_cuda`` for CUDA and to the reference elsewhere."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    static = (*shapes.DecodeOptions.__annotations__, "insist")
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=static))
    primitive.def_abstract_eval(_abstract_eval)

    def cuda_lowering(*operands: jax.Array, insist: bool, **options: Any) -> Results:
        del insist
        registry.require(registry.FLASH_DECODE)
        return on_cuda(*operands, **options)

    for lowering, platform in ((cuda_lowering, "cuda"), (_default_lowering, None)):
        rule = mlir.lower_fun(lowering, multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    ad.primitive_jvps[primitive] = _refuse_to_differentiate
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
    return primitive


# Under jit the sharding rule needs to know the devices. In shard_map nothing does, and a program
# can be lowered for an AbstractMesh.
flash_decode_p = _define("jax_baracuda_flash_decode", partition.partitioned(kernel_call))
compat.require_devices_during_lowering(flash_decode_p)
local_flash_decode_p = _define("jax_baracuda_flash_decode_local", kernel_call)


def flash_decode_call(*operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    primitive = local_flash_decode_p if partition.in_shard_map() else flash_decode_p
    out, lse = primitive.bind(*operands, **params)
    return out, lse
