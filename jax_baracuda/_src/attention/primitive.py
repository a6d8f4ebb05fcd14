"""The primitives of flash_attention: forward, backward with and without the gradient of a bias that
all query rows share, and the gradient of another bias.

Operands are those of the FFI targets, in the order of shapes.OPERANDS (a missing one is an empty
array). Parameters, all static: shapes.AttentionOptions and `insist` (on CUDA). Nothing here asks a
device anything, so a program can be lowered for CUDA where there is none. The workspace of a kernel
is a result of the FFI call alone, not of the primitive: nothing can keep it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_baracuda._src import compat, primitives, registry
from jax_baracuda._src.attention import partition, shapes
from jax_baracuda._src.attention.batching import batch
from jax_baracuda._src.attention.reference import flash_attention_reference

Results = tuple[jax.Array, ...]
Call = Callable[..., Results]

TARGETS: dict[shapes.Pass, str] = {
    "forward": registry.FLASH_ATTENTION,
    "backward": registry.FLASH_ATTENTION_BACKWARD,
    "row_bias_backward": registry.FLASH_ATTENTION_BACKWARD,  # with one more result
    "bias_grad": registry.FLASH_ATTENTION_BIAS_GRAD,
}
# Of the primitives.
NAMES: dict[shapes.Pass, str] = TARGETS | {
    "row_bias_backward": "jax_baracuda_flash_attention_row_bias_backward"
}


def kernel_call(kind: shapes.Pass, *operands: jax.Array, **options: Any) -> Results:
    """The CUDA kernel of a pass on the arrays of one device.

    The forward and the backward pass take `portable` besides: whether to leave out kernels of one
    architecture, for comparisons.
    """
    named = dict(zip(shapes.OPERANDS[kind], operands, strict=True))
    scratch = shapes.workspace_bytes(kind, shapes.kernel_shape(named))
    results = [jax.ShapeDtypeStruct(*like) for like in shapes.result_types(kind, named)]
    workspace = jax.ShapeDtypeStruct((scratch,), jnp.uint8)
    call = jax.ffi.ffi_call(TARGETS[kind], (*results, workspace))
    return tuple(call(*operands, **_attributes(kind, **options)))[:-1]


def _attributes(
    kind: shapes.Pass,
    *,
    scale: float,
    causal: bool,
    top_left: bool,
    logits_soft_cap: float,
    dropout_rate: float,
    deterministic: bool,
    portable: bool = False,
    **integers: int,
) -> dict[str, Any]:
    """The options as the FFI target takes them."""
    attributes: dict[str, Any] = dict(
        scale=np.float32(scale),
        causal=causal,
        top_left=top_left,
        logits_soft_cap=np.float32(logits_soft_cap),
        dropout_rate=np.float32(dropout_rate),
    )
    attributes |= {name: np.int64(value) for name, value in integers.items()}
    if kind == "forward":
        return attributes | {"portable": portable}
    if kind == "bias_grad":
        return attributes
    return attributes | {"deterministic": deterministic, "portable": portable}


def forward_reference(*operands: jax.Array, deterministic: bool, **options: Any) -> Results:
    """The forward pass in plain jnp, which repeats bit for bit in any case."""
    del deterministic
    return flash_attention_reference(*operands, **options)


def _backward_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    dout: jax.Array,
    dlse: jax.Array,
    *optional: jax.Array,
    **options: Any,
) -> Results:
    dlse = dlse if shapes.is_given(dlse) else jnp.zeros_like(lse)

    def forward(*operands: jax.Array) -> Results:
        return forward_reference(*operands, *optional, **options)

    gradients = jax.vjp(forward, query, key, value)[1]((dout, dlse))
    products = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = jnp.where(lse == -jnp.inf, 0, jnp.swapaxes(products, 1, 2) - dlse)
    return *gradients, delta


def _bias_grad_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lse: jax.Array,
    dout: jax.Array,
    delta: jax.Array,
    bias: jax.Array,
    *optional: jax.Array,
    **options: Any,
) -> Results:
    # In float32 throughout: `out` enters the gradient by delta alone.
    wide = [array.astype(jnp.float32) for array in (query, key, value)]

    def forward(bias: jax.Array) -> Results:
        return forward_reference(*wide, bias, *optional, **options)

    (out, _), gradient = jax.vjp(forward, bias)
    dout = dout.astype(jnp.float32)
    dlse = jnp.swapaxes(jnp.sum(dout * out, axis=-1), 1, 2) - delta
    return tuple(gradient((dout, jnp.where(lse == -jnp.inf, 0, dlse))))


def _row_bias_backward_reference(*operands: jax.Array, **options: Any) -> Results:
    named = dict(zip(shapes.OPERANDS["row_bias_backward"], operands, strict=True))
    *gradients, named["delta"] = _backward_reference(*operands, **options)
    of_bias = _bias_grad_reference(*(named[n] for n in shapes.OPERANDS["bias_grad"]), **options)
    return *gradients, named["delta"], *of_bias


_REFERENCES: dict[shapes.Pass, Call] = {
    "forward": forward_reference,
    "backward": _backward_reference,
    "row_bias_backward": _row_bias_backward_reference,
    "bias_grad": _bias_grad_reference,
}


def _abstract_eval(kind: shapes.Pass, *avals: Any, **_: Any) -> list[Any]:
    varying = frozenset[str]().union(*(compat.varying_axes(aval) for aval in avals))
    types = shapes.result_types(kind, dict(zip(shapes.OPERANDS[kind], avals, strict=True)))
    specs = partition.result_specs(kind, avals)
    return [
        compat.output_aval(avals[0], shape, dtype, spec, varying)
        for (shape, dtype), spec in zip(types, specs, strict=True)
    ]


def _default_lowering(
    kind: shapes.Pass, *operands: jax.Array, insist: bool, **options: Any
) -> Results:
    if insist:
        raise NotImplementedError(
            "flash_attention: implementation is 'cuda' and this program is compiled for another "
            "platform; supported there are None and 'reference'."
        )
    return _REFERENCES[kind](*operands, **options)


def _refuse_to_differentiate(primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise NotImplementedError(
        "flash_attention has first derivatives in reverse mode (jax.grad, jax.vjp) and no second "
        "ones. Supported is flash_attention with implementation='reference', which is plain "
        "jax.numpy and has every derivative."
    )


def _define(kind: shapes.Pass, name: str, on_cuda: Call) -> Primitive:
    """A primitive that lowers to ``on_cuda`` for CUDA and to the reference elsewhere."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitives.run_compiled(primitive, (*shapes.AttentionOptions.__annotations__, "insist"))
    primitive.def_abstract_eval(functools.partial(_abstract_eval, kind))

    def cuda_lowering(*operands: jax.Array, insist: bool, **options: Any) -> Results:
        del insist
        registry.require(TARGETS[kind])
        return on_cuda(*operands, **options)

    default = functools.partial(_default_lowering, kind)
    for lowering, platform in ((cuda_lowering, "cuda"), (default, None)):
        rule = mlir.lower_fun(lowering, multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    ad.primitive_jvps[primitive] = _refuse_to_differentiate
    batching.primitive_batchers[primitive] = functools.partial(batch, primitive, kind)
    return primitive


def _define_pair(kind: shapes.Pass) -> tuple[Primitive, Primitive]:
    """One primitive for jit, where the sharding rule needs the devices, and one for shard_map.

    In shard_map nothing needs devices, and a program can be lowered for an AbstractMesh.
    """
    call: Call = functools.partial(kernel_call, kind)
    if kind == "forward":  # of which a scan over layers keeps what the backward pass needs
        call = primitives.run_once(call)
    primitive = _define(kind, NAMES[kind], partition.partitioned(kind, call))
    compat.require_devices_during_lowering(primitive)
    return primitive, _define(kind, f"{NAMES[kind]}_local", call)


_PRIMITIVES: dict[shapes.Pass, tuple[Primitive, Primitive]] = {
    kind: _define_pair(kind) for kind in TARGETS
}


def bind(kind: shapes.Pass, *operands: jax.Array, **params: Any) -> list[jax.Array]:
    """Binds the primitive of a pass that the surrounding context needs."""
    primitive = _PRIMITIVES[kind][partition.in_shard_map()]
    results: list[jax.Array] = primitive.bind(*operands, **params)
    return results
