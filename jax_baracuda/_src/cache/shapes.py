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


def check_layout(kv_layout: str) -> bool:
    """True for NHD, False for HND."""
    if kv_layout not in ("HND", "NHD"):
        raise ValueError(
            f"kv_layout is {kv_layout!r}; supported are 'HND' (heads before rows) and 'NHD' (rows "
            "before heads)."
        )
    return kv_layout == "NHD"


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
    kv_layout: str,
) -> bool:
    """Checks the arrays against each other; whether the layout is NHD."""
    nhd = check_layout(kv_layout)
    store = "[P, page_size, Hkv, D]" if nhd else "[P, Hkv, page_size, D]"
    for name, array in (("k_pages", k_pages), ("v_pages", v_pages)):
        validation.check_rank(name, array, f"{store} (kv_layout={kv_layout!r})")
    for name, array in (("key", key), ("value", value)):
        validation.check_rank(name, array, "[T, Hkv, D]")
    _check_dtypes("k_pages", k_pages, v_pages=v_pages, key=key, value=value, query=query)
    _check_stores("k_pages", k_pages, "v_pages", v_pages)

    pages, page_size = k_pages.shape[0], k_pages.shape[1 if nhd else 2]
    heads, tokens = k_pages.shape[2 if nhd else 1], key.shape[0]
    if isinstance(page_size, int) and page_size < 1:
        raise ValueError(f"k_pages has shape {k_pages.shape}, {store}; page_size must be >= 1.")
    check_below_int32("k_pages", "pages", pages)
    _check_shape("key", key, "[T, Hkv, D]", (tokens, heads, k_pages.shape[3]))
    _check_shape("value", value, "[T, Hkv, D]", (tokens, heads, v_pages.shape[3]))
    if query is not None:
        validation.check_rank("query", query, "[T, Hq, D]")
        _check_shape("query", query, "[T, Hq, D]", (tokens, query.shape[1], k_pages.shape[3]))
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
    nhd = check_layout(kv_layout)
    stacked = "L, " if layer is not None else ""
    cache = f"[{stacked}B, Kmax, Hkv, D]" if nhd else f"[{stacked}B, Hkv, Kmax, D]"
    rows = "[B, T, Hkv, D]" if nhd else "[B, Hkv, T, D]"
    how = f"{cache} (kv_layout={kv_layout!r}, layer={'given' if stacked else 'None'})"
    validation.check_rank("k_cache", k_cache, how)
    validation.check_rank("v_cache", v_cache, how)
    for name, array in (("key", key), ("value", value)):
        validation.check_rank(name, array, f"{rows} (kv_layout={kv_layout!r})")
    _check_dtypes("k_cache", k_cache, v_cache=v_cache, key=key, value=value, query=query)
    _check_stores("k_cache", k_cache, "v_cache", v_cache)

    batch, *middle, dim = k_cache.shape[-4:]
    capacity, heads = middle if nhd else middle[::-1]
    tokens = key.shape[1 if nhd else 2]
    check_below_int32("k_cache", "rows a request", capacity)
    check_below_int32("key", "rows a request", tokens)

    def of(heads: int, dim: int) -> tuple[int, ...]:
        return (batch, tokens, heads, dim) if nhd else (batch, heads, tokens, dim)

    _check_shape("key", key, rows, of(heads, dim))
    _check_shape("value", value, rows, of(heads, v_cache.shape[-1]))
    if query is not None:
        wanted = rows.replace("Hkv", "Hq")
        validation.check_rank("query", query, f"{wanted} (kv_layout={kv_layout!r})")
        _check_shape("query", query, wanted, of(query.shape[2 if nhd else 1], dim))
    validation.check_integers("lengths", lengths, (batch,), "[B]")
    if layer is not None:
        validation.check_integers("layer", layer, (), "a scalar, []")
    return nhd


def check_below_int32(name: str, what: str, count: int) -> None:
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


def _check_dtypes(first: str, store: HasShape, **others: HasShape | None) -> None:
    """One dtype for all of them: rows are copied, not converted."""
    _check_float(first, store)
    for name, array in others.items():
        if array is not None and array.dtype != store.dtype:
            raise ValueError(
                f"{name} has dtype {validation.dtype_name(array)} and {first} has "
                f"{validation.dtype_name(store)}; they must be equal: convert the new rows with "
                "astype."
            )


def _check_stores(k_name: str, key: HasShape, v_name: str, value: HasShape) -> None:
    """K and V may differ in the head dimension alone."""
    if tuple(key.shape[:-1]) != tuple(value.shape[:-1]):
        raise ValueError(
            f"{v_name} has shape {tuple(value.shape)} and {k_name} {tuple(key.shape)}; all but the "
            "last dimension must be equal."
        )
    for name, array in ((k_name, key), (v_name, value)):
        if 0 in array.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; D must be >= 1.")


def _check_shape(name: str, array: HasShape, layout: str, wanted: tuple[int, ...]) -> None:
    if tuple(array.shape) != wanted:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; for these stores it must be {layout} = "
            f"{wanted}."
        )
