"""How int4_matmul spreads over a mesh: the dimensions of its operands, by letters.

- m, the rows of x: each device multiplies its own.
- o, the output channels (strips of 64): each device makes its own columns of the result.
- k, the input channels (tiles of 64), with g, their groups: each device makes a part of every sum,
  and the parts are added up over the devices (in float32), then the bias.

Channels that are not whole tiles, and groups that would be cut, are gathered. Where rows of x and a
dimension of the weight are sharded over one mesh axis, the weight is gathered along it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_baracuda._src import sharding
from jax_baracuda._src.int4 import image
from jax_baracuda._src.sharding import Axes, Layout

Results = tuple[jax.Array, ...]
Call = Callable[..., Any]

Dimension = tuple[tuple[str, int], ...]  # its factors, outermost first: names and sizes

_CUT = "mko"  # the factors that may be sharded
NAMES = ("x", "packed", "scales", "zeros", "bias")
_WORDS = {
    "m": "rows",
    "k": "input channels",
    "o": "output channels",
    "g": "groups",
    "r": "groups",
    "w": "bytes",
}


def partitioned(call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, **options: Any) -> Results:
        if any(0 in operand.shape for operand in operands[:4]):  # nothing to multiply
            return tuple(call(*operands, **options))
        spread = _Spread(call, operands, **options)
        return sharding.with_rule(
            spread.whole,
            spread.layout,
            operands,
            spread.rule,
            spread.local_axes,
            lambda axes, part, letters: part,
            call_on=spread.part,
        )

    return with_rule


class _Spread:
    """One call and what may be sharded in it."""

    def __init__(
        self, call: Call, operands: Sequence[jax.Array], *, group_size: int, out_features: int
    ) -> None:
        x, packed, scales, _, bias = operands
        self.whole = functools.partial(call, group_size=group_size, out_features=out_features)
        self.call, self.group_size, self.out_features = call, group_size, out_features
        strips, self.tiles, _ = packed.shape
        self.groups = scales.shape[0]
        self.sizes = {"m": x.shape[0], "o": strips, "k": self.tiles}
        whole_groups = self.groups * group_size == self.tiles * image.TILE
        # Only channels that are whole tiles, and whole groups of them, can be cut.
        self.cut = {
            "m": True,
            "o": out_features == strips * image.STRIP,
            "k": x.shape[1] == self.tiles * image.TILE and (whole_groups or self.groups == 1),
        }
        groups = "r" if self.groups == 1 else "g"
        self.layout = Layout(
            op="int4_matmul",
            names=NAMES,
            operands=("mk", "okw", f"{groups}o", f"{groups}o", "o" if bias.size else ""),
            results=("mo",),
            words=_WORDS,
        )

    def rule(self, mesh: Mesh) -> tuple[str, dict[str, Any]]:
        """The rule in Shardy's notation: factors m, k and o may be sharded, the rest are whole."""
        del mesh
        tiles, channels, groups = self._input_channels()
        strips: Dimension = (("o", self.sizes["o"]),)
        columns = outs = (*strips, ("strip", image.STRIP))
        if not self.cut["o"]:
            strips, columns, outs = _whole("strips"), _whole("columns"), _whole("outs")
        rows: Dimension = (("m", self.sizes["m"]),)
        table = (groups, columns)
        operands = [(rows, channels), (strips, tiles, _whole("bytes")), table, table]
        if self.layout.operands[4]:
            operands.append((outs,))
        return _in_words(operands, (rows, outs))

    def _input_channels(self) -> tuple[Dimension, Dimension, Dimension]:
        """The factors of the tiles of the image, of the columns of x and of the groups."""
        if not self.cut["k"]:
            return _whole("tiles"), _whole("channels"), _whole("groups")
        tiles: Dimension = (("k", self.tiles),)
        groups: Dimension = (("k", self.groups),)
        if self.groups == 1:
            return tiles, (*tiles, ("tile", image.TILE)), _whole("groups")
        if self.group_size < image.TILE:
            groups = (*tiles, ("groups", image.TILE // self.group_size))
            return tiles, (*groups, ("group", self.group_size)), groups
        tiles = (*groups, ("tiles", self.group_size // image.TILE))
        return tiles, (*tiles, ("tile", image.TILE)), groups

    def local_axes(
        self, mesh: Mesh, args: Sequence[Any], results: Sequence[Any]
    ) -> dict[str, Axes]:
        """Mesh axes for each letter, near to what XLA proposes. Rows come first."""
        x, packed, scales, zeros = args[:4]
        found = {
            "m": ((x, 0), (results[0], 0)),
            "k": ((x, 1), (packed, 1), (scales, 0), (zeros, 0)),
            "o": ((packed, 0), (scales, 1), (zeros, 1), (results[0], 1)),
        }
        axes: dict[str, Axes] = {}
        for letter, places in found.items():
            taken = {name for names in axes.values() for name in names}
            proposed = (sharding.mesh_axes(mesh, array, place) for array, place in places)
            wanted = next(filter(None, proposed), ())
            prefixes = (wanted[:count] for count in range(len(wanted), 0, -1))
            axes[letter] = next(
                (p for p in prefixes if not taken & set(p) and self._divides(letter, mesh, p)), ()
            )
        axes["g"] = axes["k"]
        return axes

    def _divides(self, letter: str, mesh: Mesh, axes: Axes) -> bool:
        parts = math.prod(mesh.shape[name] for name in axes)
        whole_groups = letter != "k" or self.groups == 1 or self.groups % parts == 0
        return self.cut[letter] and whole_groups and self.sizes[letter] % parts == 0

    def part(self, axes: Mapping[str, Axes]) -> Call:
        """The call on the arrays of one device."""

        def on_part(*operands: jax.Array) -> Results:
            columns = min(self.out_features, operands[1].shape[0] * image.STRIP)
            call = functools.partial(self.call, group_size=self.group_size, out_features=columns)
            if not axes["k"]:
                return tuple(call(*operands))
            *others, bias = operands
            (out,) = call(*others, jnp.zeros((0,), bias.dtype))
            total = sharding.sum_over(axes["k"], out.astype(jnp.float32))
            if bias.size:
                total = total + bias.astype(jnp.float32)
            return (total.astype(out.dtype),)

        return on_part


def _whole(name: str) -> Dimension:
    """A dimension that is one factor of its own."""
    return ((name, 0),)


def _in_words(
    operands: Sequence[Sequence[Dimension]], result: Sequence[Dimension]
) -> tuple[str, dict[str, Any]]:
    """A rule as Shardy's text, the sizes of the factors that need one, and what is whole."""
    sizes: dict[str, Any] = {}  # in the order of their appearance, which Shardy wants
    alone: set[str] = set()

    def dimension(factors: Dimension) -> str:
        factors = tuple(f for f in factors if f[1] != 1) or factors[:1]  # a factor may not be 1
        sizes.update(factors)
        names = [name for name, _ in factors]
        if len(names) == 1:
            alone.add(names[0])
            return names[0]
        return f"({' '.join(names)})"

    sides = [" ".join(map(dimension, dims)) for dims in (*operands, result)]
    whole = tuple(name for name in sizes if name not in _CUT)
    extra = {name: size for name, size in sizes.items() if name not in alone}
    return f"{', '.join(sides[:-1])} -> {sides[-1]}", extra | {"need_replication_factors": whole}


def in_auto_mode(call: Call, operands: Sequence[jax.Array]) -> jax.Array:
    """``call(*operands)``; on an Explicit mesh the result is typed and the inside left to XLA."""
    (out,) = sharding.in_auto_mode(call, operands, result_specs)
    result: jax.Array = out
    return result


def result_specs(avals: Sequence[Any]) -> list[P]:
    """The type of the result from those of the operands; ValueError if they disagree."""
    leading = avals[0].ndim - 1
    letters = ("." * leading + "k", "okw", "go", "go", "o")
    found: dict[str, tuple[str, Axes]] = {}
    for name, aval, dims in zip(NAMES, avals, letters, strict=True):
        for letter, entry in zip(dims, aval.sharding.spec, strict=False):
            axes = _axes(aval, entry)
            letter = "k" if letter == "g" else letter
            if letter == "." or not axes:
                continue
            if letter == "w":
                raise ValueError(
                    f"packed is sharded over {axes} along its bytes (type {aval}); supported are "
                    "the first two dimensions. Use jax.reshard first."
                )
            other, known = found.setdefault(letter, (name, axes))
            if known != axes:
                raise ValueError(
                    f"{name} is sharded over {axes} along its {_WORDS[letter]} and {other} over "
                    f"{known}; they must agree. Use jax.reshard first."
                )
    rows = [*avals[0].sharding.spec, *[None] * leading][:leading]
    columns = found.get("o", ("", ()))[1]
    taken = [name for entry in rows for name in _axes(avals[0], entry)]
    taken += found.get("k", ("", ()))[1]
    if set(taken) & set(columns):
        raise ValueError(
            f"x is sharded over {tuple(taken)} and the output channels of weight over {columns}; "
            "they must not share a mesh axis. Use jax.reshard first."
        )
    return [P(*rows, columns or None)]


def _axes(aval: Any, entry: Any) -> Axes:
    """The mesh axes, of more than one device, of an entry of a spec."""
    axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
    return axes if math.prod(aval.sharding.mesh.shape[name] for name in axes) > 1 else ()
