"""What differs between jax versions, or has no public name in jax. Nothing else looks at either."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import jax
from jax.extend.core import Primitive

try:
    from jax._src import dispatch as _dispatch

    _needs_devices: set[Primitive] = _dispatch.prim_requires_devices_during_lowering
except (ImportError, AttributeError):  # a later jax may have moved it: only sharded jit needs it
    _needs_devices = set()


def require_devices_during_lowering(primitive: Primitive) -> None:
    """Tells the lowering of ``primitive`` the device assignment: custom_partitioning needs it."""
    _needs_devices.add(primitive)


def deterministic_ops() -> bool:
    """Whether XLA was asked, by its flags, for results that repeat bit for bit."""
    flags = re.findall(r"--xla_gpu_deterministic_ops(=\S*)?", os.environ.get("XLA_FLAGS", ""))
    return bool(flags) and flags[-1].lower() in ("", "=true", "=1")


def varying_axes(aval: jax.core.ShapedArray) -> frozenset[str]:
    """The manual mesh axes over which a value differs (its "vma"), empty outside shard_map."""
    return frozenset(aval.manual_axis_type.varying)


def match_varying(*arrays: jax.Array) -> list[jax.Array]:
    """Casts the arrays to vary over the union of their varying manual axes.

    Primitives under ``shard_map(..., check_vma=True)`` need operands of one type; jnp functions do
    this themselves.
    """
    axes = [varying_axes(jax.typeof(array)) for array in arrays]
    union = frozenset[str]().union(*axes)
    return [
        jax.lax.pcast(array, tuple(sorted(union - own)), to="varying") if union - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]


def output_aval(
    template: jax.core.ShapedArray,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    spec: jax.sharding.PartitionSpec,
    varying: frozenset[str],
) -> jax.core.ShapedArray:
    """An aval with everything that a type carries: the mesh of ``template``, a spec, a vma."""
    aval: jax.core.ShapedArray = template.update(
        shape=tuple(shape),
        dtype=jax.numpy.dtype(dtype),
        weak_type=False,
        sharding=template.sharding.update(spec=spec),
        manual_axis_type=template.manual_axis_type.update(varying=varying),
    )
    return aval
