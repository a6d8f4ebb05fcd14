"""The primitives of the appends and of apply_rope: their types, what they lower to, derivatives.

Operands: partition.NAMES, in that order (a missing one is an empty array). Parameters, all static:
shapes.AppendOptions or shapes.RotationOptions, and `insist` (on CUDA).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad

from jax_baracuda._src import compat, primitives, registry
from jax_baracuda._src.cache import batching, partition, reference, shapes

Kind = Literal["paged_append", "kv_cache_append", "apply_rope"]
Results = tuple[jax.Array, ...]

# Operands that an append writes, and the results that take their memory.
_IN_PLACE = {0: 0, 1: 1}


def _attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as an FFI target takes them."""
    return {**options, "attention_factor": np.float32(options["attention_factor"])}


def _append_kernel(*operands: jax.Array, paged: bool, **options: Any) -> Results:
    """One launch of the kernel: operands in the order of the FFI target."""
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*operands[:2], operands[4])]
    call = jax.ffi.ffi_call(registry.APPEND, results, input_output_aliases=_IN_PLACE)
    return tuple(call(*operands, paged=paged, **_attributes(options)))


def _paged_append_kernel(*operands: jax.Array, **options: Any) -> Results:
    *arrays, batch_indices, positions, page_indices, page_indptr, layers = operands
    table = (batch_indices, page_indices, page_indptr)
    return _append_kernel(*arrays, positions, *table, layers, paged=True, **options)


def _cache_append_kernel(*operands: jax.Array, **options: Any) -> Results:
    *arrays, lengths, layers = operands
    table = [jnp.zeros((0,), jnp.int32)] * 3
    return _append_kernel(*arrays, lengths, *table, layers, paged=False, **options)


def _rope_kernel(
    x: jax.Array, positions: jax.Array, inv_freq: jax.Array, **options: Any
) -> Results:
    call = jax.ffi.ffi_call(registry.ROPE, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
    return tuple(call(x, positions, inv_freq, **_attributes(options)))


def _rope_reference(*operands: jax.Array, **options: Any) -> Results:
    return (reference.rope_reference(*operands, **options),)


def _abstract_eval(kind: Kind, like: Sequence[int], *avals: Any, **params: Any) -> list[Any]:
    """Avals of results that are like the operands ``like``."""
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in avals))
    specs = partition.result_specs(kind, avals, nhd=params.get("nhd", False))
    return [
        compat.output_aval(avals[0], avals[index].shape, avals[index].dtype, spec, varying)
        for index, spec in zip(like, specs, strict=True)
    ]


def _op(kind: Kind, kernel: Any, plain: Any) -> primitives.Op:
    rotation = kind == "apply_rope"
    options: Any = shapes.RotationOptions if rotation else shapes.AppendOptions
    return primitives.Op(
        name=kind,
        target=registry.ROPE if rotation else registry.APPEND,
        static=tuple(options.__annotations__),
        abstract_eval=functools.partial(_abstract_eval, kind, (0,) if rotation else (0, 1, 4)),
        kernel=kernel,
        reference=plain,
        partitioned=functools.partial(partition.partitioned, kind),
        batch=batching.RULES[kind],
    )


OPS: dict[Kind, primitives.Op] = {
    "paged_append": _op("paged_append", _paged_append_kernel, reference.paged_append_reference),
    "kv_cache_append": _op(
        "kv_cache_append", _cache_append_kernel, reference.cache_append_reference
    ),
    "apply_rope": _op("apply_rope", _rope_kernel, _rope_reference),
}
PRIMITIVES = {kind: primitives.define_pair(op) for kind, op in OPS.items()}


def _rope_jvp(
    primitive: Primitive, primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    """A rotation is linear in x; positions are integers, and frequencies constants."""
    x, *rest = primals
    return primitive.bind(x, *rest, **params), primitive.bind(tangents[0], *rest, **params)


def _rope_transpose(
    primitive: Primitive,
    cotangents: Sequence[Any],
    x: Any,
    positions: Any,
    inv_freq: Any,
    **params: Any,
) -> list[Any]:
    """The transpose of a rotation is the rotation by the negative angle."""
    (cotangent,) = cotangents
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(x.aval), None, None]
    return [*primitive.bind(cotangent, positions, -inv_freq, **params), None, None]


def make_linear(rope: Sequence[Primitive]) -> None:
    """Gives the primitives of apply_rope their derivatives."""
    for primitive in rope:
        ad.primitive_jvps[primitive] = functools.partial(_rope_jvp, primitive)
        ad.primitive_transposes[primitive] = functools.partial(_rope_transpose, primitive)


make_linear(PRIMITIVES["apply_rope"])


def bind(kind: Kind, *operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    return tuple(primitives.choose(PRIMITIVES[kind]).bind(*operands, **params))
