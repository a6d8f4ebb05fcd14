"""Checks that several ops make of their arguments: pure functions that raise by argument name."""

from __future__ import annotations

import math
import operator
from typing import Any, Protocol

import numpy as np

DTYPES = ("float16", "bfloat16", "float32")
MAX_HEAD_DIM = 256
MAX_INT32 = 2**31 - 1
IMPLEMENTATIONS = (None, "cuda", "reference")


class HasShape(Protocol):
    """Anything with a shape and a dtype: an array, a tracer, a jax.ShapeDtypeStruct."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def dtype_name(array: HasShape) -> str:
    """Such as "bfloat16"."""
    return str(array.dtype)


def check_dtypes(query: HasShape, **others: HasShape) -> str:
    """The one dtype of query, key and value."""
    dtype = dtype_name(query)
    if dtype not in DTYPES:
        raise NotImplementedError(f"query has dtype {dtype}; supported are {', '.join(DTYPES)}.")
    for name, array in others.items():
        if dtype_name(array) != dtype:
            raise ValueError(
                f"{name} has dtype {dtype_name(array)} and query has {dtype}; they must be equal."
            )
    return dtype


def check_rank(name: str, array: HasShape, layout: str) -> None:
    """Raises unless the array has as many dimensions as ``layout``, such as "[B, Hq, D]"."""
    rank = layout.split("]")[0].count(",") + 1
    if len(array.shape) != rank:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, rank {len(array.shape)}; it must be {layout}."
        )


def check_integers(name: str, array: HasShape, shape: tuple[int, ...], layout: str) -> None:
    """Raises unless the array holds integers and has the shape."""
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be {layout} = {shape}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has dtype {dtype_name(array)}; it must be an integer dtype.")


def check_per_head(name: str, array: HasShape, shapes: list[tuple[int, ...]], layout: str) -> None:
    """Raises unless the array holds floats and has one of the shapes."""
    if tuple(array.shape) not in shapes:
        given = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(array.shape)}; it must be {layout} = {given}.")
    dtype = dtype_name(array)
    if dtype not in (*DTYPES, "float64"):
        raise ValueError(f"{name} has dtype {dtype}; it must be a floating-point dtype.")


def check_layout(kv_layout: str) -> bool:
    """True for NHD, False for HND."""
    if kv_layout not in ("HND", "NHD"):
        raise ValueError(
            f"kv_layout is {kv_layout!r}; supported are 'HND' (heads before rows) and 'NHD' (rows "
            "before heads)."
        )
    return kv_layout == "NHD"


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor on the logits; 1/sqrt(D) when it is not given."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    return number(
        "scale",
        scale,
        "a finite Python number, or None for 1/sqrt(D); for a traced scale multiply the query",
    )


def check_sink_tokens(sink_tokens: int) -> int:
    """How many of the first keys stay visible whatever the window."""
    return min(check_count("sink_tokens", sink_tokens), MAX_INT32)


def check_count(name: str, value: int) -> int:
    """The value as an int that is not negative."""
    count = index(value)
    if count is None or count < 0:
        raise ValueError(f"{name} is {value!r}; it must be an int >= 0.")
    return count


def check_soft_cap(logits_soft_cap: float | None) -> float:
    """The cap of cap * tanh(logits / cap); 0 for none."""
    if logits_soft_cap is None:
        return 0.0
    what = "a finite Python number > 0, or None for no cap"
    cap = number("logits_soft_cap", logits_soft_cap, what)
    # The kernel holds the cap in float32, where 0 means none: a cap that underflows must not.
    if np.float32(cap) <= 0 or not np.isfinite(np.float32(cap)):
        raise ValueError(f"logits_soft_cap is {logits_soft_cap!r}; it must be {what}.")
    return cap


def check_implementation(implementation: str | None) -> None:
    """Raises unless the name is a known one."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation is {implementation!r}; supported are None, 'cuda' and 'reference'."
        )


def index(value: Any) -> int | None:
    """The value as an int, None if it is not one (a bool is not one)."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(name: str, value: Any, what: str) -> float:
    """The value as a finite float; a tracer, an array or a string is refused."""
    result = math.nan
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name} is {value!r}; it must be {what}.")
    return result
