"""How the tests call an op once: jitted, on a device of choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def jit_once(call: Callable[..., Any], platform: str) -> Callable[[dict[str, Any]], Any]:
    """Jits a call with keyword operands; on a CPU a case runs once, so it compiles fast."""
    options = {"xla_backend_optimization_level": 0} if platform == "cpu" else None
    return jax.jit(lambda operands: call(**operands), compiler_options=options)


def host() -> jax.Device:
    """The CPU device; the default one where the CPU platform is switched off."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return jax.devices()[0]


def count_differences(step: Callable[[Any], Any], operands: Any, repeats: int) -> int:
    """The largest number of elements whose bits differ between the first result and another."""
    first = step(operands)
    counts = [_differing(step(operands), first) for _ in range(repeats)]
    return int(jnp.max(jnp.stack(counts)))


@jax.jit
def _differing(a: Any, b: Any) -> jax.Array:
    unsigned = {2: jnp.uint16, 4: jnp.uint32}

    def as_bits(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.sum(as_bits(x) != as_bits(y)) for x, y in pairs), jnp.int32(0))
