"""flash_attention with its derivative, in terms of the primitives.

The residuals are the operands, the output and the log-sum-exp. The last two are named "context" and
"lse" for the policies of jax.checkpoint: a policy that saves them keeps the forward kernel from
running twice.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from jax_baracuda._src.attention import primitive, shapes

Params = tuple[tuple[str, Any], ...]  # the items of the primitives' parameters: hashable
Results = tuple[jax.Array, jax.Array]
Residuals = tuple[dict[str, jax.Array], dict[str, None]]

_OPERANDS = shapes.OPERANDS["forward"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(params: Params, *operands: jax.Array) -> Results:
    """(out, lse) of operands as the forward primitive takes them, differentiable in reverse mode.

    Raises NotImplementedError where alibi_slopes is differentiated.
    """
    out, lse = primitive.bind("forward", *operands, **dict(params))
    return out, lse


def _forward(params: Params, *operands: CustomVJPPrimal) -> tuple[Results, Residuals]:
    named = dict(zip(_OPERANDS, operands, strict=True))
    if named["alibi_slopes"].perturbed:
        raise NotImplementedError(
            "alibi_slopes of flash_attention has no derivative. Use jax.lax.stop_gradient on it, "
            "or implementation='reference', which has one."
        )
    arrays = {name: operand.value for name, operand in named.items()}
    out, lse = primitive.bind("forward", *arrays.values(), **dict(params))
    arrays["out"], arrays["lse"] = checkpoint_name(out, "context"), checkpoint_name(lse, "lse")
    # Which gradients are wanted beside those of query, key and value; None is no array to keep.
    wanted = {name: None for name in ("bias", "sinks") if named[name].perturbed}
    return (arrays["out"], arrays["lse"]), (arrays, wanted)


def _backward(
    params: Params, residuals: Residuals, cotangents: tuple[Any, Any]
) -> tuple[jax.Array | None, ...]:
    arrays, wanted = dict(residuals[0]), residuals[1]
    dout, dlse = cotangents
    arrays["dout"] = jnp.zeros_like(arrays["out"]) if isinstance(dout, SymbolicZero) else dout
    arrays["dlse"] = jnp.zeros((0,), jnp.float32) if isinstance(dlse, SymbolicZero) else dlse

    def bind(kind: shapes.Pass) -> list[jax.Array]:
        return primitive.bind(kind, *(arrays[n] for n in shapes.OPERANDS[kind]), **dict(params))

    row_bias = "bias" in wanted and arrays["bias"].shape[2] == 1
    kind: shapes.Pass = "row_bias_backward" if row_bias else "backward"
    gradients = dict(zip(shapes.RESULTS[kind], bind(kind), strict=True))
    arrays["delta"] = gradients.pop("delta")
    if "bias" in wanted and not row_bias:
        (gradients["bias"],) = bind("bias_grad")
    if "sinks" in wanted:
        gradients["sinks"] = _sinks_gradient(arrays["sinks"], arrays["lse"], arrays["delta"])
    return tuple(gradients.get(name) for name in _OPERANDS)


def _sinks_gradient(sinks: jax.Array, lse: jax.Array, delta: jax.Array) -> jax.Array:
    """[1, Hq]: minus the share of the sink in every row, weighted by the row's delta."""
    rows = lse != -jnp.inf
    share = jnp.exp(sinks[:, :, None] - jnp.where(rows, lse, jnp.inf))
    return -jnp.sum(share * delta, axis=(0, 2))[None]


attention.defvjp(_forward, _backward, symbolic_zeros=True)
