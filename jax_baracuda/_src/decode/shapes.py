"""Validation and workspace size of flash_decode: pure functions of shapes and static options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

from jax_baracuda._src import validation
from jax_baracuda._src.validation import MAX_HEAD_DIM, MAX_INT32, HasShape

MAX_SPLITS = 1024


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """The sizes of one decode step, checked."""

    batch: int
    q_heads: int
    kv_heads: int
    capacity: int  # K: how many rows a request's cache holds
    head_dim: int
    dtype: str

    @property
    def group(self) -> int:
        """Query heads that read the same key/value head."""
        return self.q_heads // self.kv_heads


def decode_shape(query: HasShape, key: HasShape, *, nhd: bool) -> DecodeShape:
    """The sizes of operands that are known to be right."""
    batch, q_heads, head_dim = query.shape
    capacity, kv_heads = key.shape[1:3] if nhd else (key.shape[2], key.shape[1])
    return DecodeShape(batch, q_heads, kv_heads, capacity, head_dim, validation.dtype_name(query))


class DecodeOptions(TypedDict):
    """The static options in the form that the primitive, the kernel and the reference take."""

    nhd: bool
    scale: float
    window_left: int  # -1: no window
    sink_tokens: int
    logits_soft_cap: float  # 0: none
    num_splits: int  # 0: the kernel chooses


def check_options(
    head_dim: int,
    *,
    kv_layout: str = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
) -> DecodeOptions:
    """Checks the options of flash_decode; raises ValueError by name."""
    return DecodeOptions(
        nhd=validation.check_layout(kv_layout),
        scale=validation.check_scale(scale, head_dim),
        window_left=check_window(local_window_size),
        sink_tokens=validation.check_sink_tokens(sink_tokens),
        logits_soft_cap=validation.check_soft_cap(logits_soft_cap),
        num_splits=check_num_splits(num_splits),
    )


def check_operands(
    query: HasShape,
    key: HasShape,
    value: HasShape,
    kv_lengths: HasShape | None,
    sinks: HasShape | None,
    alibi_slopes: HasShape | None,
    *,
    kv_layout: str,
) -> DecodeShape:
    """Checks the arrays against each other; raises ValueError or NotImplementedError by name."""
    nhd = validation.check_layout(kv_layout)
    cache = "[B, K, Hkv, D]" if nhd else "[B, Hkv, K, D]"
    validation.check_rank("query", query, "[B, Hq, D]")
    check_keys(query, key, value, names=("key", "value"), layout=cache, kv_layout=kv_layout)
    shape = decode_shape(query, key, nhd=nhd)
    batch, q_heads, capacity = shape.batch, shape.q_heads, shape.capacity
    if key.shape[0] != batch:
        raise ValueError(f"key has batch size {key.shape[0]} and query has {batch}.")
    if isinstance(capacity, int) and capacity > MAX_INT32:
        raise NotImplementedError(f"key holds {capacity} rows a request; supported are < 2**31.")

    if kv_lengths is not None:
        validation.check_integers("kv_lengths", kv_lengths, (batch,), "[B]")
    if sinks is not None:
        validation.check_per_head("sinks", sinks, [(q_heads,)], "[Hq]")
    if alibi_slopes is not None:
        validation.check_per_head(
            "alibi_slopes", alibi_slopes, [(q_heads,), (batch, q_heads)], "[Hq] or [B, Hq]"
        )
    return shape


def check_keys(
    query: HasShape,
    key: HasShape,
    value: HasShape,
    *,
    names: tuple[str, str],
    layout: str,
    kv_layout: str,
) -> None:
    """Checks caches or stores, of that layout, against each other and against a query of rank 3."""
    for name, array in zip(names, (key, value), strict=True):
        validation.check_rank(name, array, f"{layout} (kv_layout={kv_layout!r})")
    validation.check_dtypes(query, **dict(zip(names, (key, value), strict=True)))
    key_name, value_name = names
    if tuple(value.shape) != tuple(key.shape):
        raise ValueError(
            f"{value_name} has shape {value.shape} and {key_name} has {key.shape}; both must be "
            f"{layout}."
        )
    _, q_heads, head_dim = query.shape
    if key.shape[3] != head_dim:
        raise ValueError(f"{key_name} has head dimension {key.shape[3]} and query has {head_dim}.")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise NotImplementedError(
            f"query has head dimension {head_dim}; supported are 1 to {MAX_HEAD_DIM}."
        )
    kv_heads = key.shape[2 if kv_layout == "NHD" else 1]
    if kv_heads < 1 or q_heads < 1 or q_heads % kv_heads != 0:
        raise ValueError(
            f"query has {q_heads} heads and {key_name} has {kv_heads} (shape {key.shape} is "
            f"{layout}); the query heads must be a multiple of the key/value heads."
        )


def check_window(local_window_size: int | Sequence[int] | None) -> int:
    """How many keys before the query's own row are visible; -1 for all of them."""
    if local_window_size is None:
        return -1
    given: Sequence[Any] = (local_window_size, local_window_size)
    if isinstance(local_window_size, (tuple, list)):
        given = local_window_size
    sizes = [size for size in map(validation.index, given) if size is not None and size >= 0]
    if len(sizes) != 2 or len(given) != 2:
        raise ValueError(
            f"local_window_size is {local_window_size!r}; supported are None (no window), an int "
            ">= 0, or a pair (left, right) of ints >= 0."
        )
    # The query is the last row of its history: nothing lies to its right. A window past int32 is
    # a window over everything that a cache can hold.
    return min(sizes[0], MAX_INT32)


def check_num_splits(num_splits: int | None) -> int:
    """How many parts a request's cache is cut into; 0 to let the kernel choose."""
    if num_splits is None:
        return 0
    count = validation.index(num_splits)
    if count is None or not 1 <= count <= MAX_SPLITS:
        raise ValueError(
            f"num_splits is {num_splits!r}; supported are None and ints from 1 to {MAX_SPLITS}."
        )
    return count


def workspace_bytes(shape: DecodeShape, num_splits: int) -> int:
    """Scratch memory of the kernel: one float32 (m, l, o[D]) a query head and partial result.

    It depends on shapes and static options alone: the kernel fits its number of splits to the bytes
    that it is given. ``num_splits`` is 0 when the kernel chooses.
    """
    rows = shape.batch * shape.kv_heads
    slot = 4 * shape.group * (shape.head_dim + 2)
    if num_splits:
        slots = rows * num_splits if num_splits > 1 else 0
    else:
        blocks = -(-shape.capacity // 64)
        if shape.head_dim <= 128 and shape.group <= 8:
            blocks_per_sm = 4
        else:
            blocks_per_sm = 2 if shape.group <= 16 else 1
        # 192 is above the SM count of every supported GPU: the GPU at hand is never asked.
        slots = 2 * 192 * blocks_per_sm
        if isinstance(rows * blocks, int):
            slots = min(slots, 2 * rows * blocks) if blocks > 1 else 0
    needed = slots * slot
    # Under jax.export a size may be symbolic, and then has no order.
    return max(16, needed) if isinstance(needed, int) else needed
