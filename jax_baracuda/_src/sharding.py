"""How the kernels spread over a mesh: each device runs one on its own sequences and heads.

XLA does not look into a custom call: left alone, it would gather every operand on every device. A
``Layout`` names the dimensions of a call's operands and results by letters, and ``spread`` tells
XLA what may stay sharded under jit:

- b, the batch, over everything that has one;
- h, the key/value heads, together with q, the query heads that read them;
- the query heads of a key/value head that a device has alone, as in multi-query attention.

No other letter may: an operand that is sharded there is gathered along that dimension, by the rule
and not by accident; on an Explicit mesh it is an error. A result that lacks b or q is a sum over
them, and is summed over the devices that share them. On one device, and in shard_map over the whole
mesh, nothing of this is used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

Call = Callable[..., Any]
Axes = tuple[str, ...]

_NO_MESH = AbstractMesh((), ())


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the dimensions of a call are.

    Attributes:
      op: the public function, for errors.
      names: of the operands, the first three being query, key and value.
      operands: a letter for each dimension of each operand. b is the batch, n a multiple of it, q
        query heads, h key/value heads, 1 a broadcast dimension; what other letters mean is in
        ``words``. A missing operand, an empty array, has no letters.
      results: likewise; without b or q, the result is a sum over that dimension.
      words: the other letters, in words.
      fixed: the letters along which no operand may be sharded, not even to be gathered.
    """

    op: str
    names: tuple[str, ...]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    words: Mapping[str, str]
    fixed: str = ""

    @property
    def present(self) -> list[int]:
        """Which operands there are."""
        return [index for index, letters in enumerate(self.operands) if letters]

    @property
    def spreads_over(self) -> str:
        """What may stay sharded, in words."""
        return "the batch and the heads" if "b" in "".join(self.operands) else "the heads"

    def size(self, letter: str, shapes: Sequence[tuple[int, ...]]) -> int:
        """The extent of a dimension."""
        return next(
            shape[letters.index(letter)]
            for shape, letters in zip(shapes, self.operands, strict=True)
            if letter in letters
        )


def spread(call: Call, layout: Layout, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """``call(*operands)`` with the sharding rule around it; ``call`` returns a tuple."""
    if layout.present[:3] != [0, 1, 2]:  # nothing to attend to
        return tuple(call(*operands))
    dims = [layout.operands[index] for index in layout.present]
    shapes = [operand.shape for operand in operands]
    q_heads, kv_heads = layout.size("q", shapes), layout.size("h", shapes)

    def rule(mesh: Mesh) -> tuple[str, dict[str, Any]]:
        return _sharding_rule(mesh, layout, dims, shapes)

    def local_axes(mesh: Mesh, args: Sequence[Any], results: Sequence[Any]) -> dict[str, Axes]:
        return _local_axes(mesh, layout, q_heads, kv_heads, dims, args, results)

    return with_rule(call, layout, operands, rule, local_axes, _sum_parts)


def with_rule(
    call: Call,
    layout: Layout,
    operands: Sequence[jax.Array],
    rule: Callable[[Mesh], tuple[str, dict[str, Any]]],
    local_axes: Callable[[Mesh, Sequence[Any], Sequence[Any]], Mapping[str, Axes]],
    finish: Callable[[Mapping[str, Axes], jax.Array, str], jax.Array],
    *,
    call_on: Callable[[Mapping[str, Axes]], Call] | None = None,
) -> tuple[jax.Array, ...]:
    """``call(*operands)`` on the parts of every device, under jit.

    Args:
      call: takes the operands and returns a tuple.
      layout: what their dimensions are. A missing operand is left out of what XLA sees.
      operands: of the call.
      rule: the sharding rule of the present operands, in Shardy's notation, and its options.
      local_axes: the mesh axes of each letter, from what XLA proposes for operands and results.
      finish: makes a result, whose letters are given, of what a device has of it.
      call_on: the call for the parts of one device, where it is not ``call``.
    """
    _refuse_a_part_of_the_mesh(layout.op)
    present = layout.present
    dims = [layout.operands[index] for index in present]
    missing = [
        None if letters else (operand.shape, operand.dtype)
        for operand, letters in zip(operands, layout.operands, strict=True)
    ]

    def run(call: Call, *given: jax.Array) -> tuple[jax.Array, ...]:
        arrays = iter(given)
        return tuple(call(*(jnp.zeros(*like) if like else next(arrays) for like in missing)))

    def partition(mesh: Mesh, args: Sequence[Any], results: Sequence[Any]) -> Any:
        if mesh.empty:
            raise NotImplementedError(f"{layout.op} under jit needs operands with a NamedSharding.")
        _refuse_to_gather(mesh, layout, args)
        axes = local_axes(mesh, args, results)

        def sharding(letters: str) -> NamedSharding:
            return NamedSharding(mesh, P(*(axes.get(letter) for letter in letters)))

        def on_one_device(*given: jax.Array) -> tuple[jax.Array, ...]:
            with jax.sharding.use_abstract_mesh(_NO_MESH):  # whatever mesh the caller has set
                parts = run(call_on(axes) if call_on else call, *given)
            return tuple(map(functools.partial(finish, axes), parts, layout.results))

        return (
            mesh,
            on_one_device,
            tuple(map(sharding, layout.results)),
            tuple(map(sharding, dims)),
        )

    function = custom_partitioning(functools.partial(run, call))
    # Shardings arrive undecoded: jax's own decoding fails on a dimension that is sharded over
    # part of a mesh axis, as Shardy may propose; mesh_axes below does not.
    function.def_partition(
        partition, sharding_rule=lambda mesh, *_: rule(mesh), decode_shardings=False
    )
    return tuple(function(*(operands[index] for index in present)))


def _refuse_to_gather(mesh: Mesh, layout: Layout, args: Sequence[Any]) -> None:
    """Raises if XLA would have to gather an operand that may be too large for that."""
    for index, array in zip(layout.present, args, strict=True):
        for place, letter in enumerate(layout.operands[index]):
            axes = mesh_axes(mesh, array, place) if letter in layout.fixed else ()
            if axes:
                raise NotImplementedError(
                    f"{layout.op}: {layout.names[index]} is sharded over {axes} along its "
                    f"{layout.words[letter]}, and would have to be gathered; supported are "
                    f"{layout.spreads_over}. Use shard_map, or reshard first."
                )


def _sum_parts(axes: Mapping[str, Axes], part: jax.Array, letters: str) -> jax.Array:
    """Adds up what the devices have of a result that lacks the batch or the query heads."""
    kept = {name for letter in letters for name in axes.get(letter, ())}
    names = tuple(name for name in axes["b"] + axes["q"] if name not in kept)
    if not names:
        return part
    return sum_over(names, part.astype(jnp.float32)).astype(part.dtype)


def sum_over(names: Axes, part: jax.Array) -> jax.Array:
    """jax.lax.psum, for what runs on one device of a rule."""
    total: jax.Array = _psum_p.bind(part, names=names)
    return total


def _lower_psum(context: Any, part: Any, *, names: Axes) -> Any:
    psum = mlir.lower_fun(functools.partial(jax.lax.psum, axis_name=names), multiple_results=False)
    with jax.sharding.use_abstract_mesh(_NO_MESH):
        return psum(context, part)


# jax.lax.psum, but what it lowers to does not know the mesh that the caller has set: on an Explicit
# one, its addition would be annotated with shardings, and XLA knows no such reduction.
_psum_p = Primitive("jax_baracuda_psum")
_psum_p.def_abstract_eval(lambda part, *, names: part)
mlir.register_lowering(_psum_p, _lower_psum)


def _sharding_rule(
    mesh: Mesh, layout: Layout, dims: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[str, dict[str, Any]]:
    """The rule in Shardy's notation: which dimensions of operands and results go together."""
    q_heads, kv_heads = layout.size("q", shapes), layout.size("h", shapes)
    extra: dict[str, Any] = {}
    names = {"b": "b", "h": "h", "q": "q"}
    with_parts = any("n" in letters for letters in dims)
    if with_parts and (batch := layout.size("b", shapes)) > 1:
        extra["p"] = layout.size("n", shapes) // batch
        names["n"] = "(b p)"
        if extra["p"] == 1:  # a factor may not be 1
            names["n"], extra = "b", {}
    if q_heads == kv_heads:
        names["q"] = "h"
    elif kv_heads > 1 and all(kv_heads % size == 0 for size in mesh.shape.values()):
        names["q"] = "(h g)"
        extra["g"] = q_heads // kv_heads
    # Otherwise the heads stay untied: Shardy would shard keys and values over a part of a mesh
    # axis, and that ends in a gather. Untied, they stay as they are, and the query is fitted.
    fixed: list[str] = []

    def factors() -> Iterator[str]:
        for index, letters in enumerate((*dims, *layout.results)):
            words = []
            for place, letter in enumerate(letters):
                # Every other dimension is a factor of its own, and whole on every device.
                words.append(names.get(letter) or f"whole{index}x{place}")
                if letter not in names:
                    fixed.append(words[-1])
            yield " ".join(words)

    sides = list(factors())
    extra["need_replication_factors"] = tuple(fixed)
    return f"{', '.join(sides[: len(dims)])} -> {', '.join(sides[len(dims) :])}", extra


def _local_axes(
    mesh: Mesh,
    layout: Layout,
    q_heads: int,
    kv_heads: int,
    dims: Sequence[str],
    args: Sequence[Any],
    results: Sequence[Any],
) -> dict[str, Axes]:
    """Mesh axes for each letter, near to what XLA proposes, such that no device needs another."""
    query, key = (args[0], dims[0]), (args[1], dims[1])
    result = (results[0], layout.results[0])

    def axes_of(letter: str, *arrays: tuple[Any, str]) -> Axes:
        found = (
            mesh_axes(mesh, array, letters.index(letter))
            for array, letters in arrays
            if letter in letters
        )
        return next(filter(None, found), ())

    def size(axes: Axes) -> int:
        return math.prod(mesh.shape[name] for name in axes)

    # Keys and values may be large (a cache), so their sharding decides, or else the query's.
    batch = axes_of("b", key, query, result)
    wanted = tuple(name for name in axes_of("q", query, result) if name not in batch)
    # Over `shared`, key/value heads go together with the query heads that read them.
    shared = tuple(name for name in axes_of("h", key) if name not in batch)
    if not shared:
        prefixes = (wanted[:count] for count in range(len(wanted), -1, -1))
        shared = next(prefix for prefix in prefixes if kv_heads % size(prefix) == 0)
    # Over `rest`, the query heads of one key/value head: it must be the only one on a device.
    rest = wanted[len(shared) :] if wanted[: len(shared)] == shared else ()
    if kv_heads != size(shared) or q_heads // kv_heads % size(rest):
        rest = ()
    return {"b": batch, "n": batch, "h": shared, "q": shared + rest}


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


def _refuse_a_part_of_the_mesh(op: str) -> None:
    """Raises in shard_map over some mesh axes: XLA cannot partition a custom call over the rest."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and _axes_left_to_jit(mesh):
        raise NotImplementedError(
            f"{op} is in shard_map over the mesh axes {mesh.manual_axes}, and "
            f"{_axes_left_to_jit(mesh)} are left to jit; on CUDA every axis must be manual. Leave "
            "axis_names out of shard_map, or nest another shard_map over the rest."
        )


def in_auto_mode(
    call: Call, operands: Sequence[jax.Array], specs: Callable[[Sequence[Any]], Sequence[P]]
) -> Any:
    """``call(*operands)``; on an Explicit mesh the results are typed and the inside left to XLA.

    ``specs`` makes the types of the results from the avals of the operands, where it is needed.
    """
    avals = [jax.typeof(operand) for operand in operands]
    mesh = next((a.sharding.mesh for a in avals if not a.sharding.mesh.empty), _NO_MESH)
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    if not explicit:
        return call(*operands)
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs(avals))
    typed = jax.sharding.auto_axes(
        lambda *inside: tuple(call(*inside)), axes=explicit, out_sharding=shardings
    )
    return typed(*operands)


def result_specs(layout: Layout, avals: Sequence[Any]) -> list[P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    found: dict[str, tuple[str, Axes]] = {}
    for name, aval, letters in zip(layout.names, avals, layout.operands, strict=True):
        for letter, entry in zip(letters, aval.sharding.spec, strict=False):
            axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            if math.prod(aval.sharding.mesh.shape[name] for name in axes) == 1:
                continue
            if letter not in "bnhq":
                raise ValueError(
                    f"{name} is sharded over {axes} along its "
                    f"{layout.words.get(letter, 'broadcast dimension')} (type {aval}); supported "
                    f"are {layout.spreads_over}. Use jax.reshard first."
                )
            letter = "b" if letter == "n" else letter
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
    entries = {"b": batch, "n": batch, "q": heads, "h": shared}
    return [P(*(entries.get(letter) or None for letter in letters)) for letters in layout.results]
