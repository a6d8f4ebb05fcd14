"""How flash_decode spreads over a mesh: each device runs the kernel on its own requests and heads.

XLA does not look into a custom call: left alone, it would gather every operand on every device. The
rule here says what may stay sharded under jit:

- the batch, over everything that has one;
- the heads: key/value heads together with the query heads that read them;
- the query heads of a key/value head that a device has alone, as in multi-query attention.

The cache rows (K) and the head dimension (D) may not: an operand that is sharded there is gathered
along that dimension, by the rule and not by accident; on an Explicit mesh it is an error. To spread
one long cache over devices, call flash_decode in shard_map with return_lse=True and merge the
states. No cache is moved for the sake of a query, which is small. On one device, and in shard_map
over the whole mesh, nothing of this is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

Results = tuple[jax.Array, jax.Array]
Call = Callable[..., Results]
Axes = tuple[str, ...]

OPERANDS = ("query", "key", "value", "kv_lengths", "sinks", "alibi_slopes")
# What the dimensions of the results are: batch, query heads, head dimension (see dimensions()).
_RESULTS = ("bqd", "bq")
_NO_MESH = AbstractMesh((), ())


def dimensions(shapes: Sequence[tuple[int, ...]], *, nhd: bool) -> list[str]:
    """A letter for each dimension of each operand, in the order of OPERANDS.

    b batch, q query heads, h key/value heads, k cache rows, d head dimension, 1 a broadcast row. A
    missing operand, an empty array, has none.
    """
    cache = "bkhd" if nhd else "bhkd"
    batch = shapes[0][0]
    rows = ["bq" if shape[0] == batch else "1q" for shape in shapes[4:]]
    letters = ["bqd", cache, cache, "b", *rows]
    return [
        dims if len(dims) == len(shape) and 0 not in shape else ""
        for dims, shape in zip(letters, shapes, strict=True)
    ]


def partitioned(call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, nhd: bool, **options: Any) -> Results:
        call_here = functools.partial(call, nhd=nhd, **options)
        dims = dimensions([operand.shape for operand in operands], nhd=nhd)
        present = [index for index, letters in enumerate(dims) if letters]
        if present[:3] != [0, 1, 2]:  # an empty cache
            return call_here(*operands)
        _refuse_a_part_of_the_mesh()
        q_heads, kv_heads = operands[0].shape[1], operands[1].shape[dims[1].index("h")]
        missing = [
            None if letters else (operand.shape, operand.dtype)
            for operand, letters in zip(operands, dims, strict=True)
        ]
        dims = [dims[index] for index in present]

        def local(*given: jax.Array) -> Results:
            arrays = iter(given)
            return call_here(*(jnp.zeros(*like) if like else next(arrays) for like in missing))

        def on_one_device(*given: jax.Array) -> Results:
            with jax.sharding.use_abstract_mesh(_NO_MESH):  # whatever mesh the caller has set
                return local(*given)

        def rule(mesh: Mesh, *_: Any) -> tuple[str, dict[str, Any]]:
            return sharding_rule(mesh, dims, q_heads, kv_heads)

        def partition(mesh: Mesh, args: Sequence[Any], results: Sequence[Any]) -> Any:
            axes = local_axes(mesh, dims, args, results)

            def sharding(letters: str) -> NamedSharding:
                return NamedSharding(mesh, P(*(axes.get(letter) for letter in letters)))

            return mesh, on_one_device, tuple(map(sharding, _RESULTS)), tuple(map(sharding, dims))

        function = custom_partitioning(local)
        # Shardings arrive undecoded: jax's own decoding fails on a dimension that is sharded over
        # part of a mesh axis, as Shardy may propose; mesh_axes below does not.
        function.def_partition(partition, sharding_rule=rule, decode_shardings=False)
        out, lse = function(*(operands[index] for index in present))
        return out, lse

    return with_rule


def sharding_rule(
    mesh: Mesh, dims: Sequence[str], q_heads: int, kv_heads: int
) -> tuple[str, dict[str, Any]]:
    """The rule in Shardy's notation: which dimensions of operands and results go together."""
    names = {letter: letter for letter in "bqhkd"}
    extra: dict[str, Any] = {"need_replication_factors": ("d", "k")}
    if q_heads == kv_heads:
        names["q"] = "h"
    elif kv_heads > 1 and all(kv_heads % size == 0 for size in mesh.shape.values()):
        names["q"] = "(h g)"
        extra["g"] = q_heads // kv_heads
    # Otherwise the heads stay untied: Shardy would shard the cache over a part of a mesh axis, and
    # that ends in a gather. Untied, the cache stays as it is, and local_axes fits the query to it.
    operands = [
        " ".join(f"one{index}" if letter == "1" else names[letter] for letter in letters)
        for index, letters in enumerate(dims)
    ]
    results = [" ".join(names[letter] for letter in letters) for letters in _RESULTS]
    return f"{', '.join(operands)} -> {', '.join(results)}", extra


def local_axes(
    mesh: Mesh, dims: Sequence[str], args: Sequence[Any], results: Sequence[Any]
) -> dict[str, Axes]:
    """Mesh axes for each letter, near to what XLA proposes, such that no device needs another."""
    if mesh.empty:
        raise NotImplementedError("flash_decode under jit needs operands with a NamedSharding.")
    query, key = args[0], args[1]
    kv_heads = key.shape[dims[1].index("h")]
    group = query.shape[1] // kv_heads

    def axes_of(array: Any, dim: int) -> Axes:
        return mesh_axes(mesh, array, dim)

    def size(axes: Axes) -> int:
        return math.prod(mesh.shape[name] for name in axes)

    # The cache is large, so its sharding decides; where it has none it follows the query.
    batch = axes_of(key, 0) or axes_of(query, 0) or axes_of(results[0], 0)
    wanted = axes_of(query, 1) or axes_of(results[0], 1)
    wanted = tuple(name for name in wanted if name not in batch)
    # Over `shared`, key/value heads go together with the query heads that read them.
    shared = tuple(name for name in axes_of(key, dims[1].index("h")) if name not in batch)
    if not shared:
        prefixes = (wanted[:count] for count in range(len(wanted), -1, -1))
        shared = next(prefix for prefix in prefixes if kv_heads % size(prefix) == 0)
    # Over `rest`, the query heads of one key/value head: it must be the only one on a device.
    rest = wanted[len(shared) :] if wanted[: len(shared)] == shared else ()
    if kv_heads != size(shared) or group % size(rest):
        rest = ()
    return {"b": batch, "h": shared, "q": shared + rest}


def mesh_axes(mesh: Mesh, array: Any, dim: int) -> Axes:
    """The mesh axes over which ``array`` is sharded along ``dim``, outermost first.

    Empty also where they are not whole axes: that dimension is then gathered.
    """

    def starts(sharding: Sharding) -> np.ndarray:
        slices = sharding.devices_indices_map(array.shape)
        found = [slices[device][dim].start or 0 for device in mesh.devices.flat]
        return np.array(found).reshape(mesh.devices.shape)

    try:
        given = starts(array.sharding)
        # How far one step along each mesh axis moves along the dimension.
        steps = {
            name: int(np.moveaxis(given, at, 0).reshape(size, -1)[1, 0])
            for at, (name, size) in enumerate(mesh.shape.items())
            if size > 1
        }
        axes = tuple(sorted(filter(steps.get, steps), key=lambda name: -steps[name]))
        whole = np.array_equal(given, starts(NamedSharding(mesh, P(*[None] * dim, axes))))
    except ValueError:  # the dimension does not divide evenly
        return ()
    return axes if whole else ()


def in_shard_map() -> bool:
    """Whether the caller is in shard_map over the whole mesh: it has the arrays of one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes) and not _axes_left_to_jit(mesh)


def _axes_left_to_jit(mesh: AbstractMesh) -> list[str]:
    names = set(mesh.axis_names) - set(mesh.manual_axes)
    return [name for name in mesh.axis_names if name in names and mesh.shape[name] > 1]


def _refuse_a_part_of_the_mesh() -> None:
    """Raises in shard_map over some mesh axes: XLA cannot partition a custom call over the rest."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and _axes_left_to_jit(mesh):
        raise NotImplementedError(
            f"flash_decode is in shard_map over the mesh axes {mesh.manual_axes}, and "
            f"{_axes_left_to_jit(mesh)} are left to jit; on CUDA every axis must be manual. Leave "
            "axis_names out of shard_map, or nest another shard_map over the rest."
        )


def in_auto_mode(call: Call, operands: Sequence[jax.Array], *, nhd: bool) -> Results:
    """``call(*operands)``; on an Explicit mesh the results are typed and the inside left to XLA."""
    avals = [jax.typeof(operand) for operand in operands]
    mesh = next((a.sharding.mesh for a in avals if not a.sharding.mesh.empty), _NO_MESH)
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    if not explicit:
        out, lse = call(*operands)
        return out, lse
    shardings = tuple(NamedSharding(mesh, spec) for spec in result_specs(avals, nhd=nhd))

    def inside(*operands: jax.Array) -> Results:
        out, lse = call(*operands)
        return out, lse

    typed: Call = jax.sharding.auto_axes(inside, axes=explicit, out_sharding=shardings)
    return typed(*operands)


def result_specs(avals: Sequence[Any], *, nhd: bool) -> tuple[P, P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    found: dict[str, tuple[str, Axes]] = {}
    dims = dimensions([aval.shape for aval in avals], nhd=nhd)
    for name, aval, letters in zip(OPERANDS, avals, dims, strict=True):
        for letter, entry in zip(letters, aval.sharding.spec, strict=False):
            axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            if not axes:
                continue
            if letter in "kd1":
                raise ValueError(
                    f"{name} is sharded over {axes} along its "
                    f"{'cache rows' if letter == 'k' else 'head dimension'} "
                    f"(type {aval}); supported are the batch and the heads. Use jax.reshard first."
                )
            other, known = found.setdefault(letter, (name, axes))
            if known != axes:
                raise ValueError(
                    f"{name} is sharded over {axes} along its "
                    f"{'batch' if letter == 'b' else 'heads'} and {other} over {known}; they must "
                    "agree. Use jax.reshard first."
                )
    (_, batch), (_, shared), (_, heads) = (found.get(letter, ("", ())) for letter in "bhq")
    heads = heads or shared
    if heads[: len(shared)] != shared or set(heads) & set(batch):
        raise ValueError(
            f"query is sharded over {heads} along its heads and over {batch} along the batch, and "
            f"key over {shared} along its heads; the heads must go together. Use jax.reshard first."
        )
    return P(batch or None, heads or None, None), P(batch or None, heads or None)
