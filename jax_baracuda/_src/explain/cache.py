"""explain for appends, rotary embeddings and merged states, which trace the call to check it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_baracuda._src import registry, validation
from jax_baracuda._src.cache import api, rope
from jax_baracuda._src.explain import info
from jax_baracuda._src.merge.api import merge_attention_states as merge

# The arguments that are arrays and may be left out; all others are options.
_ARRAYS = ("query", "layer")


def of_rows(op: str) -> Callable[..., info.KernelInfo]:
    """That of an op that copies or turns rows: in one kernel of that name."""
    call: Callable[..., Any] = rope.apply_rope if op == "apply_rope" else getattr(api, op)
    target = registry.ROPE if op == "apply_rope" else registry.APPEND
    return functools.partial(_rows, op, call, target)


def _rows(
    op: str,
    call: Callable[..., Any],
    target: str,
    first: Any,
    *rest: Any,
    implementation: str | None = None,
    **options: Any,
) -> info.KernelInfo:
    validation.check_implementation(implementation)
    dtype = str(_trace(call, first, *rest, **options)[0].dtype)
    if not info.runs_on_cuda(implementation):
        return info.reference(op, dtype, implementation)
    angles = "angles and rotations in float32"
    copies = "rows are copied as they are" + (
        f", {angles}" if options.get("rope") is not None else ""
    )
    return info.KernelInfo(
        op=op,
        name=op,
        implementation="cuda",
        arch=registry.serving_architecture(),
        dtype=dtype,
        accumulator="float32",
        deterministic=True,
        batch_invariant=True,
        workspace_bytes=0,
        note=f"{angles if op == 'apply_rope' else copies}{info.obstacle(target)}",
    )


def merge_attention_states(*avals: Any) -> info.KernelInfo:
    """What merges: XLA, in one loop over the outputs."""
    op = "merge_attention_states"
    return dataclasses.replace(
        info.reference(op, str(_trace(merge, *avals)[0].dtype), None),
        name=op,
        implementation="xla",
        batch_invariant=True,
        note="plain jax.numpy: elementwise, so that XLA makes one kernel of it",
    )


def _trace(call: Callable[..., Any], *avals: Any, **options: Any) -> list[Any]:
    """The results' avals; raises what the call itself would."""
    arrays = {name: _like(options.pop(name)) for name in _ARRAYS if name in options}
    traced = functools.partial(call, **options)
    return jax.tree.leaves(jax.eval_shape(traced, *map(_like, avals), **arrays))


def _like(array: Any) -> Any:
    aval = info.aval(array)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype) if hasattr(aval, "dtype") else aval
