"""Validation of paged_append, kv_cache_append and apply_rope: pure functions of shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from jax_baracuda._src import validation
from jax_baracuda._src.cache import frequencies
from jax_baracuda._src.validation import MAX_INT32, HasShape


class RotationOptions(TypedDict):
    """What is static of a rotation, in the form that the primitives and the kernels take."""

    interleaved: bool
    attention_factor: float


class AppendOptions(RotationOptions):
    """The static options of an append."""

    nhd: bool


def rotation_options(rotation: frequencies.Rotation | None) -> RotationOptions:
    """The static part of a rotation, or of none."""
    if rotation is None:
        return RotationOptions(interleaved=False, attention_factor=1.0)
    return RotationOptions(
        interleaved=rotation.interleaved, attention_factor=rotation.attention_factor
    )


def check_rope(
    rope: Mapping[str, Any] | None, query: HasShape | None, head_dim: int
) -> frequencies.Rotation | None:
    """The rotation of an append; raises ValueError by name."""
    if rope is None:
        if query is not None:
            raise ValueError(
                "query is given and rope is None: there is nothing to do to the query. Give rope, "
                "a mapping such as {'theta': 10000.0}, or leave the query out."
            )
        return None
    names = ("theta", "interleaved", "scaling", "rotary_dim")
    if not isinstance(rope, Mapping) or not set(rope) <= set(names):
        raise ValueError(
            f"rope is {rope!r}; it must be None or a mapping with the options of apply_rope: "
            f"{', '.join(names)}."
        )
    return frequencies.rotation(head_dim, **rope)


def check_rope_operands(x: HasShape, positions: HasShape) -> None:
    """Checks apply_rope's arrays against each other."""
    if len(x.shape) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be [..., H, D].")
    _check_float("x", x)
    _check_integer("positions", positions)
    lead = tuple(x.shape[:-2])
    given = tuple(positions.shape)
    fits = len(given) <= len(lead) and all(
        size in (1, full) for size, full in zip(given, lead[len(lead) - len(given) :], strict=True)
    )
    if not fits:
        raise ValueError(
            f"positions has shape {given} and x {tuple(x.shape)}; positions must broadcast to the "
            f"leading dimensions of x, {lead}."
        )


def check_paged_append(
    k_pages: HasShape,
    v_pages: HasShape,
    key: HasShape,
    value: HasShape,
    query: HasShape | None,
    *,
    batch_indices: HasShape,
    positions: HasShape,
    page_indices: HasShape,
    page_indptr: HasShape,
    layer: HasShape | None,
    kv_layout: str,
) -> bool:
    """Checks the arrays against each other; whether the layout is NHD."""
    nhd = validation.check_layout(kv_layout)
    stores = {"k_pages": k_pages, "v_pages": v_pages}
    pages, page_size, heads = _check_stores(stores, layer, "[P, Hkv, page_size, D]", kv_layout)
    if isinstance(page_size, int) and page_size < 1:
        raise ValueError(f"k_pages has shape {tuple(k_pages.shape)}; page_size must be >= 1.")
    _check_below_int32("k_pages", "pages", pages)
    _check_dtypes(stores | {"key": key, "value": value} | _given(query=query))

    for name, rows in {"key": key, "value": value, **_given(query=query)}.items():
        validation.check_rank(name, rows, "[T, Hq, D]" if name == "query" else "[T, Hkv, D]")
    tokens = key.shape[0]
    _check_shape("key", key, "[T, Hkv, D]", (tokens, heads, k_pages.shape[-1]))
    _check_shape("value", value, "[T, Hkv, Dv]", (tokens, heads, v_pages.shape[-1]))
    if query is not None:
        _check_shape("query", query, "[T, Hq, D]", (tokens, query.shape[1], k_pages.shape[-1]))
    validation.check_integers("batch_indices", batch_indices, (tokens,), "[T]")
    validation.check_integers("positions", positions, (tokens,), "[T]")
    for name, array in (("page_indices", page_indices), ("page_indptr", page_indptr)):
        validation.check_rank(name, array, "[N]" if name == "page_indices" else "[B + 1]")
        _check_integer(name, array)
    if page_indptr.shape[0] == 0:
        raise ValueError("page_indptr has shape (0,); it must be [B + 1], which is at least [1].")
    return nhd


def check_cache_append(
    k_cache: HasShape,
    v_cache: HasShape,
    key: HasShape,
    value: HasShape,
    query: HasShape | None,
    *,
    lengths: HasShape,
    layer: HasShape | None,
    kv_layout: str,
) -> bool:
    """Checks the arrays against each other; whether the layout is NHD."""
    nhd = validation.check_layout(kv_layout)
    stores = {"k_cache": k_cache, "v_cache": v_cache}
    batch, capacity, heads = _check_stores(stores, layer, "[B, Hkv, Kmax, D]", kv_layout)
    _check_below_int32("k_cache", "rows a request", capacity)
    _check_dtypes(stores | {"key": key, "value": value} | _given(query=query))

    rows = "[B, T, Hkv, D]" if nhd else "[B, Hkv, T, D]"
    for name, array in {"key": key, "value": value, **_given(query=query)}.items():
        wanted = rows.replace("Hkv", "Hq") if name == "query" else rows
        validation.check_rank(name, array, f"{wanted} (kv_layout={kv_layout!r})")
    tokens = key.shape[1 if nhd else 2]

    def of(heads: int, dim: int) -> tuple[int, ...]:
        return (batch, tokens, heads, dim) if nhd else (batch, heads, tokens, dim)

    _check_shape("key", key, rows, of(heads, k_cache.shape[-1]))
    _check_shape("value", value, rows, of(heads, v_cache.shape[-1]))
    if query is not None:
        q_heads = query.shape[2 if nhd else 1]
        _check_shape("query", query, rows.replace("Hkv", "Hq"), of(q_heads, k_cache.shape[-1]))
    validation.check_integers("lengths", lengths, (batch,), "[B]")
    return nhd


def _given(**arrays: HasShape | None) -> dict[str, HasShape]:
    return {name: array for name, array in arrays.items() if array is not None}


def _check_stores(
    stores: dict[str, HasShape], layer: HasShape | None, hnd: str, kv_layout: str
) -> tuple[int, int, int]:
    """Slots, rows and heads of stores of which ``hnd`` is the layout without layers."""
    nhd = validation.check_layout(kv_layout)
    if layer is not None:
        validation.check_integers("layer", layer, (), "a scalar")
    slots, heads, rows, dim = hnd.strip("[]").split(", ")
    dims = [slots, rows, heads, dim] if nhd else [slots, heads, rows, dim]
    layout = f"[{', '.join(dims if layer is None else ['L', *dims])}]"
    how = f"{layout} (kv_layout={kv_layout!r}, layer {'not ' if layer is None else ''}given)"
    for name, array in stores.items():
        validation.check_rank(name, array, how)
        if 0 in array.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; D must be >= 1.")
    (k_name, key), (v_name, value) = stores.items()
    if tuple(key.shape[:-1]) != tuple(value.shape[:-1]):
        raise ValueError(
            f"{v_name} has shape {tuple(value.shape)} and {k_name} {tuple(key.shape)}; all but the "
            "last dimension must be equal."
        )
    slot_count, *middle, _ = key.shape[-4:]
    row_count, head_count = middle if nhd else middle[::-1]
    return slot_count, row_count, head_count


def _check_below_int32(name: str, what: str, count: int) -> None:
    """Raises unless int32 can count that far; a symbolic size passes."""
    if isinstance(count, int) and count > MAX_INT32:
        raise NotImplementedError(f"{name} has {count} {what}; supported are < 2**31.")


def _check_float(name: str, array: HasShape) -> None:
    dtype = validation.dtype_name(array)
    if dtype not in validation.DTYPES:
        supported = ", ".join(validation.DTYPES)
        raise NotImplementedError(f"{name} has dtype {dtype}; supported are {supported}.")


def _check_integer(name: str, array: HasShape) -> None:
    validation.check_integers(name, array, tuple(array.shape), "of any shape")


def _check_dtypes(arrays: dict[str, HasShape]) -> None:
    """One dtype for all of them: rows are copied, not converted."""
    (first, store), *others = arrays.items()
    _check_float(first, store)
    for name, array in others:
        if array.dtype != store.dtype:
            raise ValueError(
                f"{name} has dtype {validation.dtype_name(array)} and {first} has "
                f"{validation.dtype_name(store)}; they must be equal: convert the new rows with "
                "astype."
            )


def _check_shape(name: str, array: HasShape, layout: str, wanted: tuple[int, ...]) -> None:
    if tuple(array.shape) != wanted:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; for these stores it must be {layout} = "
            f"{wanted}."
        )
