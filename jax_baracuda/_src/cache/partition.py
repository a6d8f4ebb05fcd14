"""How appends and rotations spread over a mesh: which dimensions of their operands go together.

Every row is worked on by itself, so a dimension may be sharded wherever all operands that have it
can be: the key/value heads of stores and rows, the query heads, the requests of a cache, and all
leading dimensions of apply_rope. The pages of a store, the rows of a cache and the head dimension
may not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_baracuda._src import sharding
from jax_baracuda._src.sharding import Axes, Layout

Results = tuple[jax.Array, ...]
Call = Callable[..., Any]

_ROWS = ("key", "value", "query", "inv_freq")
NAMES = {
    "paged_append": (
        *("k_pages", "v_pages"),
        *_ROWS,
        *("batch_indices", "positions", "page_indices", "page_indptr", "layer"),
    ),
    "kv_cache_append": ("k_cache", "v_cache", *_ROWS, "lengths", "layer"),
    "apply_rope": ("x", "positions", "inv_freq"),
}
# Capital letters may be sharded.
_WORDS = {
    "B": "requests",
    "H": "key/value heads",
    "Q": "query heads",
    "b": "requests",
    "d": "head dimension",
    "e": "head dimension",
    "f": "frequencies",
    "i": "table",
    "l": "layers",
    "p": "pages",
    "r": "rows",
    "t": "tokens",
}
_LEADING = "ABCEFGIJKLMNORSTUVWXYZ"  # of apply_rope


def layout(kind: str, shapes: Sequence[tuple[int, ...]], *, nhd: bool) -> Layout:
    """The dimensions of operands of these shapes. The letters of an empty operand are left out."""
    results: tuple[int, ...]
    if kind == "apply_rope":
        leading = _LEADING[: len(shapes[1])]
        operands, results = [f"{leading}Hd", leading, "f"], (0,)
    else:
        store, rows, query, index = _append_letters(kind, shapes, nhd=nhd)
        values = [letters.replace("d", "e") for letters in (store, rows)]
        operands, results = [store, values[0], rows, values[1], query, "f", *index], (0, 1, 4)
    letters = tuple(
        "" if 0 in shape else dims for dims, shape in zip(operands, shapes, strict=True)
    )
    return Layout(
        op=kind,
        names=NAMES[kind],
        operands=letters,
        results=tuple(letters[index] or "i" * len(shapes[index]) for index in results),
        words=_WORDS | dict.fromkeys(_LEADING, "leading dimension") if len(shapes) == 3 else _WORDS,
    )


def _append_letters(
    kind: str, shapes: Sequence[tuple[int, ...]], *, nhd: bool
) -> tuple[str, str, str, list[str]]:
    """Letters of the K store, the new keys, the query and the integers."""
    layer, slot = "l" if len(shapes[0]) == 5 else "", "p"
    rows, index = "tHd", ["t", "t", "i", "i", "t"]
    if kind == "kv_cache_append":
        # After vmap there are more requests than a layer has caches.
        slot = "B" if shapes[0][-4] == shapes[2][0] else "b"
        rows, index = slot + ("tHd" if nhd else "Htd"), [slot, slot if shapes[7] != (1,) else "i"]
    store = layer + slot + ("rHd" if nhd else "Hrd")
    return store, rows, rows.replace("H", "Q"), index


def partitioned(kind: str, call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, **options: Any) -> Results:
        here = functools.partial(call, **options)
        dims = layout(kind, [x.shape for x in operands], nhd=options.get("nhd", False))
        if not dims.operands[0]:  # nothing to write to
            return tuple(here(*operands))
        rule = functools.partial(_sharding_rule, dims)
        axes = functools.partial(_local_axes, dims)
        return sharding.with_rule(here, dims, operands, rule, axes, lambda axes, part, dims: part)

    return with_rule


def _sharding_rule(dims: Layout, mesh: Mesh) -> tuple[str, dict[str, Any]]:
    """The rule in Shardy's notation: a factor a capital letter; other places are whole."""
    del mesh
    fixed: list[str] = []

    def factors() -> Iterator[str]:
        for index, letters in enumerate((*filter(None, dims.operands), *dims.results)):
            names = []
            for place, letter in enumerate(letters):
                names.append(letter.lower() if letter.isupper() else f"whole{index}x{place}")
                if not letter.isupper():
                    fixed.append(names[-1])
            yield " ".join(names)

    sides = list(factors())
    count = len(dims.present)
    rule = f"{', '.join(sides[:count])} -> {', '.join(sides[count:])}"
    return rule, {"need_replication_factors": tuple(fixed)}


def _local_axes(
    dims: Layout, mesh: Mesh, args: Sequence[Any], results: Sequence[Any]
) -> dict[str, Axes]:
    """Mesh axes for each letter: those of the first operand that has any. Stores come first."""
    arrays = [*zip((*args, *results), [*filter(None, dims.operands), *dims.results], strict=True)]
    axes: dict[str, Axes] = {}
    for array, letters in arrays:
        for place, letter in enumerate(letters):
            if not letter.isupper() or axes.get(letter):
                continue
            found = sharding.mesh_axes(mesh, array, place)
            # A mesh axis cannot go over two dimensions of one array.
            beside = set().union(*(other for other in dims.operands if letter in other))
            taken = {name for other in beside for name in axes.get(other, ())}
            axes[letter] = () if taken & set(found) else found
    return axes


def in_auto_mode(kind: str, call: Call, operands: Sequence[jax.Array], *, nhd: bool = False) -> Any:
    """``call(*operands)``; on an Explicit mesh the results are typed and the inside left to XLA."""
    specs = functools.partial(result_specs, kind, nhd=nhd)
    return sharding.in_auto_mode(call, operands, specs)


def result_specs(kind: str, avals: Sequence[Any], *, nhd: bool) -> list[P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    dims = layout(kind, [aval.shape for aval in avals], nhd=nhd)
    found: dict[str, tuple[str, Axes]] = {}
    for name, aval, letters in zip(dims.names, avals, dims.operands, strict=True):
        for letter, entry in zip(letters, aval.sharding.spec, strict=False):
            axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            if math.prod(aval.sharding.mesh.shape[name] for name in axes) == 1:
                continue
            if not letter.isupper():
                raise ValueError(
                    f"{name} is sharded over {axes} along its {dims.words[letter]} (type {aval}); "
                    "that dimension must be whole on every device. Use jax.reshard first."
                )
            other, known = found.setdefault(letter, (name, axes))
            if known != axes:
                raise ValueError(
                    f"{name} is sharded over {axes} along its {dims.words[letter]} and {other} "
                    f"over {known}; they must agree. Use jax.reshard first."
                )
    axes_of = {letter: axes for letter, (_, axes) in found.items()}
    return [P(*(axes_of.get(letter) for letter in letters)) for letters in dims.results]
