"""How the tests call an op once: jitted, on a device of choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


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
