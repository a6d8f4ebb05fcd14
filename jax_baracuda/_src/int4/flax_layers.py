"""What the Flax layers with four-bit weights share. Flax is imported by their modules alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_baracuda._src.int4.api import Implementation, int4_matmul
from jax_baracuda._src.int4.weight import Int4Weight

__all__ = [
    "Implementation",
    "Where",
    "merge_params",
    "multiply",
    "quantize_kernel",
    "rename",
    "split_params",
]

Path = tuple[str, ...]
Where = Callable[[Path, jax.Array], bool] | None
Tree = dict[str, Any]  # nested


def multiply(
    inputs: jax.Array,
    weight: Int4Weight,
    bias: jax.Array | None,
    *,
    dtype: DTypeLike | None,
    implementation: Implementation,
) -> jax.Array:
    """The layer's product in ``dtype``, by default that of the inputs."""
    inputs = jnp.asarray(inputs, dtype)
    return int4_matmul(inputs, weight, bias=bias, implementation=implementation)


def quantize_kernel(
    kernel: jax.Array, *, dtype: DTypeLike | None, group_size: int, symmetric: bool
) -> Int4Weight:
    """The weight of a kernel [..., IC, OC], with scales in ``dtype`` or else the kernel's."""
    make: Any = functools.partial(Int4Weight.quantize, group_size=group_size, symmetric=symmetric)
    for _ in kernel.shape[:-2]:  # stacked layers
        make = jax.vmap(make)
    weight: Int4Weight = make(kernel)
    return weight if dtype is None else weight.astype(dtype)


def split_params(
    params: Mapping[str, Any],
    where: Where,
    quantize: Callable[[jax.Array], Int4Weight],
    path: Path = (),
) -> tuple[Tree, Tree]:
    """What stays of Linen's parameters, and the weights that ``where`` chose, both at their names.

    Without ``where`` it is every "kernel" that is a matrix.
    """
    kept: Tree = {}
    rounded: Tree = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            inside = split_params(value, where, quantize, (*path, name))
            for into, found in zip((kept, rounded), inside, strict=True):
                if found:
                    into[name] = found
        elif name == "kernel" and (value.ndim == 2 if where is None else where(path, value)):
            rounded[name] = quantize(value)
        else:
            kept[name] = value
    return kept, rounded


def merge_params(one: Mapping[str, Any], other: Mapping[str, Any]) -> Tree:
    """Two trees that share no leaf, as one."""
    merged = dict(one)
    for name, value in other.items():
        inside = isinstance(value, Mapping)
        merged[name] = merge_params(one.get(name, {}), value) if inside else value
    return merged


def rename(tree: Mapping[str, Any], rounded: Mapping[str, Any]) -> Tree:
    """``tree`` with the layers that Flax named, "Dense_0", at "Int4Dense_0" if they are rounded."""
    renamed: Tree = {}
    for name, value in tree.items():
        weights = rounded.get(name, {})
        if isinstance(value, Mapping):
            swapped = "kernel" in weights and re.fullmatch(r"Dense_\d+", name)
            renamed[f"Int4{name}" if swapped else name] = rename(value, weights)
        else:
            renamed[name] = value
    return renamed
