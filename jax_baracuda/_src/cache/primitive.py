"""The primitives of the appends and of rotary embeddings: types, lowerings, derivatives.

Operands are as the references take them (a missing one is an empty array). Parameters, all static:
shapes.AppendOptions or shapes.RotationOptions, and `insist` (on CUDA). Nothing here asks a device
anything, so a program can be lowered for CUDA where there is none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_baracuda._src import compat, registry
from jax_baracuda._src.cache import batching as cache_batching
from jax_baracuda._src.cache import partition, reference, shapes

Kind = Literal["paged_append", "kv_cache_append", "apply_rope"]
Results = tuple[jax.Array, ...]
Call = Callable[..., Results]

# Operands of an append that are written, and the results that take their memory.
_IN_PLACE = {0: 0, 1: 1}


def _attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as an FFI target takes them."""
    factor = np.float32(options["attention_factor"])
    return {**options, "attention_factor": factor}


def _append_kernel(*operands: jax.Array, paged: bool, **options: Any) -> Results:
    """One launch of the kernel: operands in the order of the FFI target."""
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*operands[:2], operands[4])]
    call = jax.ffi.ffi_call(registry.APPEND, results, input_output_aliases=_IN_PLACE)
    return tuple(call(*operands, paged=paged, **_attributes(options)))


def _paged_append_kernel(*operands: jax.Array, **options: Any) -> Results:
    *arrays, batch_indices, positions, page_indices, page_indptr = operands
    table = (batch_indices, page_indices, page_indptr)
    return _append_kernel(*arrays, positions, *table, _none(), paged=True, **options)


def _cache_append_kernel(*operands: jax.Array, **options: Any) -> Results:
    *arrays, lengths, layers = operands
    return _append_kernel(*arrays, lengths, *[_none()] * 3, layers, paged=False, **options)


def _rope_kernel(
    x: jax.Array, positions: jax.Array, inv_freq: jax.Array, **options: Any
) -> Results:
    call = jax.ffi.ffi_call(registry.ROPE, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
    return tuple(call(x, positions, inv_freq, **_attributes(options)))


def rope_reference(*operands: jax.Array, **options: Any) -> Results:
    """A rotation in plain jnp, with one result."""
    return (reference.rope_reference(*operands, **options),)


def _none() -> jax.Array:
    return jnp.zeros((0,), jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Op:
    """What the primitives of an op differ in.

    Attributes:
      target: the FFI target.
      static: names of the parameters beside ``insist``.
      like: which operands the results are like.
      kernel: the op on the arrays of one device, on CUDA.
      reference: the same in plain jnp.
    """

    target: str
    static: tuple[str, ...]
    like: tuple[int, ...]
    kernel: Call
    reference: Call


_APPEND = (registry.APPEND, tuple(shapes.AppendOptions.__annotations__), (0, 1, 4))
OPS: dict[Kind, _Op] = {
    "paged_append": _Op(*_APPEND, _paged_append_kernel, reference.paged_append_reference),
    "kv_cache_append": _Op(*_APPEND, _cache_append_kernel, reference.cache_append_reference),
    "apply_rope": _Op(
        registry.ROPE,
        tuple(shapes.RotationOptions.__annotations__),
        (0,),
        _rope_kernel,
        rope_reference,
    ),
}


def _abstract_eval(kind: Kind, *avals: Any, **params: Any) -> list[Any]:
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in avals))
    specs = partition.result_specs(kind, avals, nhd=params.get("nhd", False))
    return [
        compat.output_aval(avals[0], avals[index].shape, avals[index].dtype, spec, varying)
        for index, spec in zip(OPS[kind].like, specs, strict=True)
    ]


def _default_lowering(kind: Kind, *operands: jax.Array, insist: bool, **options: Any) -> Results:
    if insist:
        raise NotImplementedError(
            f"{kind}: implementation is 'cuda' and this program is compiled for another platform; "
            "supported there are None and 'reference'."
        )
    return OPS[kind].reference(*operands, **options)


def _refuse_to_differentiate(kind: Kind, primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise NotImplementedError(
        f"{kind} is for inference and has no derivative. Supported is {kind} with "
        "implementation='reference', which is plain jax.numpy."
    )


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


def _define(kind: Kind, name: str, on_cuda: Call) -> Primitive:
    """A primitive that lowers to ``on_cuda`` for CUDA and to the reference elsewhere."""
    op = OPS[kind]
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=(*op.static, "insist")))
    primitive.def_abstract_eval(functools.partial(_abstract_eval, kind))

    def cuda_lowering(*operands: jax.Array, insist: bool, **options: Any) -> Results:
        del insist
        registry.require(op.target)
        return on_cuda(*operands, **options)

    default = functools.partial(_default_lowering, kind)
    for lowering, platform in ((cuda_lowering, "cuda"), (default, None)):
        rule = mlir.lower_fun(lowering, multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    if kind == "apply_rope":
        ad.primitive_jvps[primitive] = functools.partial(_rope_jvp, primitive)
        ad.primitive_transposes[primitive] = functools.partial(_rope_transpose, primitive)
    else:
        ad.primitive_jvps[primitive] = functools.partial(_refuse_to_differentiate, kind)
    rule = functools.partial(cache_batching.RULES[kind], primitive)
    batching.primitive_batchers[primitive] = rule
    return primitive


def _define_pair(kind: Kind) -> tuple[Primitive, Primitive]:
    """One primitive for jit, where the sharding rule needs the devices, and one for shard_map.

    In shard_map nothing needs devices, and a program can be lowered for an AbstractMesh.
    """
    kernel = OPS[kind].kernel
    primitive = _define(kind, f"jax_baracuda_{kind}", partition.partitioned(kind, kernel))
    compat.require_devices_during_lowering(primitive)
    return primitive, _define(kind, f"jax_baracuda_{kind}_local", kernel)


PRIMITIVES: dict[Kind, tuple[Primitive, Primitive]] = {kind: _define_pair(kind) for kind in OPS}


def bind(kind: Kind, *operands: jax.Array, **params: Any) -> Results:
    """Binds the primitive that the surrounding context needs."""
    primitive = PRIMITIVES[kind][partition.in_shard_map()]
    return tuple(primitive.bind(*operands, **params))
