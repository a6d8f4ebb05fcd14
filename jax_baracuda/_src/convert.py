"""From what a caller gives to the operands of a primitive. A missing one is an empty array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def array(name: str, value: Any) -> jax.Array:
    """The value as an array; ValueError, by name, if it is none."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is a {type(value).__name__}; it must be an array.") from error


def optional(name: str, value: Any) -> jax.Array | None:
    """The same, but None stays None."""
    return None if value is None else array(name, value)


def int32(given: jax.Array) -> jax.Array:
    """int32; a wider or unsigned integer is clamped before it is narrowed, so it cannot wrap."""
    if given.dtype == jnp.int32:
        return given
    own, narrow = jnp.iinfo(given.dtype), jnp.iinfo(jnp.int32)
    low, high = max(int(own.min), int(narrow.min)), min(int(own.max), int(narrow.max))
    return jnp.clip(given, low, high).astype(jnp.int32)


def lengths(given: jax.Array | None, limit: int) -> jax.Array:
    """int32, or empty."""
    if given is None:
        return jnp.zeros((0,), jnp.int32)
    if given.dtype == jnp.int32:
        return given
    # A wider or unsigned integer is clamped before it is narrowed, so that it cannot wrap.
    return jnp.clip(given, 0, limit).astype(jnp.int32)


def per_head(given: jax.Array | None) -> jax.Array:
    """float32 [1 or B, Hq], or empty."""
    if given is None:
        return jnp.zeros((0,), jnp.float32)
    given = given.astype(jnp.float32)
    return given[None] if given.ndim == 1 else given
