"""What the Flax layers with four-bit weights share. Flax is imported by their modules alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_baracuda._src.int4.api import Implementation, int4_matmul
from jax_baracuda._src.int4.weight import Int4Weight

__all__ = ["Implementation", "multiply", "quantize_kernel"]


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
