"""The flash_decode primitive: types, lowerings, batching, and a clear refusal to differentiate."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_baracuda._src import compat, registry
from jax_baracuda._src.decode import partition, shapes
from jax_baracuda._src.decode.reference import flash_decode_reference

# Operands: query, key, value, kv_lengths, sinks, alibi_slopes, as the FFI target takes them: a
# missing one is an empty array. Results: out, lse. Parameters, all static: nhd, scale, window_left,
# sink_tokens, logits_soft_cap, num_splits (0: the kernel chooses), insist (on CUDA).
flash_decode_p = Primitive("jax_baracuda_flash_decode")
flash_decode_p.multiple_results = True
compat.require_devices_during_lowering(flash_decode_p)


def decode_shape(query: Any, key: Any, *, nhd: bool) -> shapes.DecodeShape:
    """The sizes of checked operands."""
    batch, q_heads, head_dim = query.shape
    capacity, kv_heads = key.shape[1:3] if nhd else (key.shape[2], key.shape[1])
    return shapes.DecodeShape(batch, q_heads, kv_heads, capacity, head_dim, str(query.dtype))


@functools.partial(jax.jit, static_argnames=("nhd", "scale", "window_left", "sink_tokens",
                                             "logits_soft_cap", "num_splits", "insist"))
def _impl(*operands: jax.Array, **params: Any) -> list[jax.Array]:
    return flash_decode_p.bind(*operands, **params)


flash_decode_p.def_impl(_impl)


@flash_decode_p.def_abstract_eval
def _abstract_eval(query: Any, key: Any, value: Any, *rest: Any, nhd: bool, **_: Any) -> list[Any]:
    operands = (query, key, value, *rest)
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in operands))
    out, lse = partition.result_specs(operands, nhd=nhd)
    return [compat.output_aval(query, query.shape, query.dtype, out, varying),
            compat.output_aval(query, query.shape[:2], np.float32, lse, varying)]


def kernel_call(
    query: jax.Array, key: jax.Array, value: jax.Array, *rest: jax.Array, nhd: bool, scale: float,
    window_left: int, sink_tokens: int, logits_soft_cap: float, num_splits: int,
) -> tuple[jax.Array, jax.Array]:
    """The CUDA kernel on the arrays of one device. Asks no device anything."""
    scratch = shapes.workspace_bytes(decode_shape(query, key, nhd=nhd), num_splits)
    call = jax.ffi.ffi_call(
        registry.FLASH_DECODE,
        (
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(query.shape[:2], jnp.float32),
            jax.ShapeDtypeStruct((scratch,), jnp.uint8),
        ),
    )
    out, lse, _ = call(
        query, key, value, *rest,
        nhd=nhd, scale=np.float32(scale), window_left=np.int64(window_left),
        sink_tokens=np.int64(sink_tokens), logits_soft_cap=np.float32(logits_soft_cap),
        num_splits=np.int64(num_splits),
    )
    return out, lse


def reference_call(*operands: jax.Array, num_splits: int, **options: Any) -> tuple[jax.Array, jax.Array]:
    """The same in plain jnp; how the cache is split makes no difference here."""
    del num_splits
    return flash_decode_reference(*operands, **options)


def _cuda_lowering(*operands: jax.Array, insist: bool, **options: Any) -> tuple[jax.Array, jax.Array]:
    del insist
    registry.require(registry.FLASH_DECODE)
    return partition.partitioned(kernel_call)(*operands, **options)


def _default_lowering(*operands: jax.Array, insist: bool, **options: Any) -> tuple[jax.Array, jax.Array]:
    if insist:
        raise NotImplementedError(
            "flash_decode: implementation='cuda' was asked for, and this program is compiled for "
            "another platform; use implementation=None or 'reference'."
        )
    return reference_call(*operands, **options)


mlir.register_lowering(flash_decode_p, mlir.lower_fun(_cuda_lowering, multiple_results=True),
                       platform="cuda")
mlir.register_lowering(flash_decode_p, mlir.lower_fun(_default_lowering, multiple_results=True))


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    raise NotImplementedError(
        "flash_decode is for inference and has no derivative. Use flash_attention to train, or "
        "flash_decode(..., implementation='reference'), which is plain jax.numpy and differentiable."
    )


ad.primitive_jvps[flash_decode_p] = _jvp


def _batch(args: Sequence[Any], dims: Sequence[Any], *, nhd: bool, **params: Any) -> tuple[Any, Any]:
    """vmap: the mapped axis joins the head group if the cache is shared, else the batch."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    bind = functools.partial(flash_decode_p.bind, nhd=nhd, **params)
    kv_heads = args[1].shape[2 if nhd else 1] if dims[1] is None else None
    shared_cache = all(dim is None for dim in dims[1:4])
    if shared_cache and kv_heads is not None:
        return _fold_into_group(bind, size, kv_heads, args, dims)
    return _fold_into_batch(bind, size, args, dims)


def _fold_into_group(
    bind: Any, size: int, kv_heads: int, args: Sequence[Any], dims: Sequence[Any]
) -> tuple[Any, Any]:
    """N queries of one cache are N times the query heads: no copy of the cache, one read of it."""

    def fold(array: Any, dim: Any) -> Any:
        """[..., Hq, *rest], mapped or not -> [..., Hkv * N * group, *rest]."""
        if not array.size and array.ndim == 1:
            return array
        if dim is None:
            array = jnp.broadcast_to(array[None], (size, *array.shape))
        else:
            array = jnp.moveaxis(array, dim, 0)
        split = array.reshape(*array.shape[:2], kv_heads, -1, *array.shape[3:])
        folded = jnp.moveaxis(split, 0, 2)
        return folded.reshape(folded.shape[0], -1, *array.shape[3:])

    def unfold(array: Any) -> Any:
        """[B, Hkv * N * group, *rest] -> [N, B, Hq, *rest]."""
        split = array.reshape(array.shape[0], kv_heads, size, -1, *array.shape[2:])
        moved = jnp.moveaxis(split, 2, 0)
        return moved.reshape(size, array.shape[0], -1, *array.shape[2:])

    query, key, value, lengths, sinks, slopes = args
    out, lse = bind(fold(query, dims[0]), key, value, lengths, fold(sinks, dims[4]),
                    fold(slopes, dims[5]))
    return (unfold(out), unfold(lse)), (0, 0)


def _fold_into_batch(
    bind: Any, size: int, args: Sequence[Any], dims: Sequence[Any]
) -> tuple[Any, Any]:
    """N batches of B requests are N * B requests."""
    batch = args[0].shape[0 if dims[0] is None or dims[0] > 0 else 1]

    def fold(array: Any, dim: Any, *, per_request: bool = True) -> Any:
        if dim is None:
            if not per_request and (array.shape[0] == 1 or array.size == 0):
                return array  # [1, Hq] holds for every request, and an empty array is no operand
            array = jnp.broadcast_to(array[None], (size, *array.shape))
        else:
            array = jnp.moveaxis(array, dim, 0)
        array = jnp.broadcast_to(array, (size, batch, *array.shape[2:]))
        return array.reshape(size * batch, *array.shape[2:])

    query, key, value = (fold(a, d) for a, d in zip(args[:3], dims[:3], strict=True))
    lengths = args[3]
    if lengths.size or dims[3] is not None:
        lengths = fold(lengths, dims[3])
    sinks, slopes = (fold(a, d, per_request=False) for a, d in zip(args[4:], dims[4:], strict=True))
    out, lse = bind(query, key, value, lengths, sinks, slopes)
    return (out.reshape(size, batch, *out.shape[1:]), lse.reshape(size, batch, -1)), (0, 0)


batching.primitive_batchers[flash_decode_p] = _batch
