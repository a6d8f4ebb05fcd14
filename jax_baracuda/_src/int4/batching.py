"""vmap of int4_matmul: mapped rows on one weight are more rows; mapped weights go one by one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

Dims = Sequence[int | None]
Batched = tuple[list[jax.Array], list[int]]


def batch(primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any) -> Batched:
    """vmap folds x into the rows where the examples share a weight; else it is a loop."""
    bind = functools.partial(primitive.bind, **params)
    if all(dim is None for dim in dims[1:4]):
        return _fold_into_rows(bind, args, dims)
    # Weights of their own share nothing that one launch could use.
    mapped = [
        jnp.moveaxis(array, dim, 0)
        for array, dim in zip(args, dims, strict=True)
        if dim is not None
    ]

    def one(given: Sequence[jax.Array]) -> Any:
        parts = iter(given)
        operands = (
            array if dim is None else next(parts) for array, dim in zip(args, dims, strict=True)
        )
        return bind(*operands)

    return jax.lax.map(one, mapped), [0]


def _fold_into_rows(bind: Any, args: Sequence[jax.Array], dims: Dims) -> Batched:
    """[N, M, K] is [N * M, K]; a bias for each example is added afterwards."""
    x, *weight, bias = args
    nothing = jnp.zeros((0,), bias.dtype)
    if dims[0] is None:
        (out,) = bind(x, *weight, nothing)
        out = out[None]
    else:
        x = jnp.moveaxis(x, dims[0], 0)
        (out,) = bind(
            x.reshape(x.shape[0] * x.shape[1], x.shape[2]),
            *weight,
            nothing if dims[4] is not None else bias,
        )
        out = out.reshape(*x.shape[:2], out.shape[1])
    if dims[4] is not None:
        bias = jnp.moveaxis(bias, dims[4], 0)
        wide = out.astype(jnp.float32) + bias.astype(jnp.float32)[:, None]
        out = wide.astype(out.dtype)
    return [out], [0]
