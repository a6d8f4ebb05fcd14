"""Validation and workspace sizes of flash_attention: functions of shapes and static options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from jax_baracuda._src import validation
from jax_baracuda._src.validation import HasShape

# The operands of the forward kernel, in its order. A letter is a dimension: b batch (or packs), n
# sequences (the batch, or all of the packs' together; or one row for all), s query rows, k keys,
# q query heads, h key/value heads, d and e head dimensions; z and w are neither shared nor split.
DIMENSIONS = {
    "query": "bsqd",
    "key": "bkhd",
    "value": "bkhe",
    "bias": "nqsk",
    "sinks": "nq",
    "alibi_slopes": "nq",
    "query_lengths": "n",
    "kv_lengths": "n",
    "query_segment_ids": "bs",
    "kv_segment_ids": "bk",
    "cu_seqlens_q": "bz",
    "cu_seqlens_k": "bz",
    "dropout_seed": "nqw",
}
OPTIONS = tuple(DIMENSIONS)[3:]
MAX_ROWS = 2**30  # so that sums and differences of places fit int32
# The kernel for Hopper GPUs splits the keys of a call whose tiles of query rows are fewer than the
# SMs that it counts on. The same numbers are in ffi/attention/hopper/config.h.
SPLIT_SMS = 132
SPLIT_TILE_ROWS = 128
MAX_SPLITS = 32
LEAST_SPLIT_KEYS = 256
# Results, and operands of the backward kernels.
DIMENSIONS |= {"out": "bsqe", "lse": "bqs", "dout": "bsqe", "dlse": "bqs", "delta": "bqs"}
# The kernels, and the operands of each.
# The gradient of a bias that all query rows share comes with the backward pass, that of another one
# from a kernel of its own.
Pass = Literal["forward", "backward", "row_bias_backward", "bias_grad"]
_BACKWARD_OPERANDS = ("query", "key", "value", "out", "lse", "dout", "dlse", *OPTIONS)
OPERANDS: dict[Pass, tuple[str, ...]] = {
    "forward": ("query", "key", "value", *OPTIONS),
    "backward": _BACKWARD_OPERANDS,
    "row_bias_backward": _BACKWARD_OPERANDS,
    "bias_grad": ("query", "key", "value", "lse", "dout", "delta", *OPTIONS),
}
# The results of each: gradients have the names of what they are like.
RESULTS: dict[Pass, tuple[str, ...]] = {
    "forward": ("out", "lse"),
    "backward": ("query", "key", "value", "delta"),
    "row_bias_backward": ("query", "key", "value", "delta", "bias"),
    "bias_grad": ("bias",),
}
# The arguments of the public functions that are arrays and may be None.
ARGUMENTS = (
    "bias",
    "sinks",
    "alibi_slopes",
    "query_seq_lengths",
    "key_value_seq_lengths",
    "query_segment_ids",
    "key_value_segment_ids",
)
# These may hold one row for all sequences, heads or query rows.
BROADCAST = ("bias", "sinks", "alibi_slopes")


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """The sizes of one call, checked; in packed sequences ``batch`` counts the packs."""

    batch: int
    query_rows: int
    keys: int
    q_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    sequences: int  # a pack; 1 when dense
    segments: bool  # whether segment ids are given

    @property
    def symbolic(self) -> bool:
        """Whether sizes are unknown, as they may be in an exported program."""
        return not all(isinstance(n, int) for n in (self.batch, self.query_rows, self.keys))

    @property
    def group(self) -> int:
        """Query heads that read the same key/value head."""
        return self.q_heads // self.kv_heads


class AttentionOptions(TypedDict):
    """The static options in the form that the primitives, the kernels and the reference take."""

    scale: float
    causal: bool
    top_left: bool
    window_left: int  # -1: unlimited
    window_right: int
    sink_tokens: int
    logits_soft_cap: float  # 0: none
    dropout_rate: float
    max_seqlen_q: int  # 0: dense
    max_seqlen_k: int
    deterministic: bool  # of the backward kernel


def check_options(
    head_dim: int,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    local_window_size: int | Sequence[int | None] | None = None,
    sink_tokens: int = 0,
    logits_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    top_left: bool = False,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
) -> AttentionOptions:
    """Checks the static options; raises ValueError by name."""
    causal = check_flag("is_causal", is_causal)
    left, right = check_window(local_window_size)
    return AttentionOptions(
        scale=validation.check_scale(scale, max(head_dim, 1)),
        causal=causal,
        top_left=top_left,
        window_left=left,
        window_right=0 if causal and right >= 0 else right,
        sink_tokens=validation.check_sink_tokens(sink_tokens),
        logits_soft_cap=validation.check_soft_cap(logits_soft_cap),
        dropout_rate=check_dropout_rate(dropout_rate),
        max_seqlen_q=check_max_seqlen("max_seqlen_q", max_seqlen_q),
        max_seqlen_k=check_max_seqlen("max_seqlen_k", max_seqlen_k),
        deterministic=check_flag("deterministic", deterministic),
    )


def check_operands(
    query: HasShape, key: HasShape, value: HasShape, **options: HasShape | None
) -> AttentionShape:
    """Checks the arrays of a dense call against each other; raises by the name of the argument.

    ``options`` has the optional arrays by the names of flash_attention's arguments.
    """
    shape = _check_query_key_value(query, key, value, "[B, S, Hq, D]", "[B, K, Hkv, D]", "B")
    _check_per_sequence(
        options, shape.batch, "B", shape.q_heads, ("S", shape.query_rows), ("K", shape.keys)
    )
    rows, keys = (shape.batch, shape.query_rows), (shape.batch, shape.keys)
    return _check_segments(shape, options, ("[B, S]", rows), ("[B, K]", keys))


def check_packed_operands(
    query: HasShape,
    key: HasShape,
    value: HasShape,
    cu_seqlens_q: HasShape,
    cu_seqlens_k: HasShape,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: HasShape | None,
) -> AttentionShape:
    """The same of a packed call, whose arrays are one pack without a batch dimension."""
    shape = _check_query_key_value(query, key, value, "[T, Hq, D]", "[Tk, Hkv, D]", None)
    if len(cu_seqlens_q.shape) != 1 or cu_seqlens_q.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens_q has shape {tuple(cu_seqlens_q.shape)}; it must be [B + 1] for B >= 1 "
            "sequences."
        )
    bounds = (cu_seqlens_q.shape[0],)
    validation.check_integers("cu_seqlens_q", cu_seqlens_q, bounds, "[B + 1]")
    validation.check_integers("cu_seqlens_k", cu_seqlens_k, bounds, "[B + 1]")
    sequences = bounds[0] - 1
    _check_per_sequence(
        options,
        sequences,
        "B",
        shape.q_heads,
        ("max_seqlen_q", max_seqlen_q),
        ("max_seqlen_k", max_seqlen_k),
    )
    rows, keys = ("[T]", (shape.query_rows,)), ("[Tk]", (shape.keys,))
    shape = _check_segments(shape, options, rows, keys)
    return dataclasses.replace(shape, sequences=sequences)


def check_head_dims(shape: AttentionShape) -> None:
    """Raises NotImplementedError for head dimensions that no kernel takes."""
    for name, dim in (("query", shape.head_dim), ("value", shape.value_dim)):
        if not 1 <= dim <= validation.MAX_HEAD_DIM:
            raise NotImplementedError(
                f"{name} has head dimension {dim}; supported are 1 to {validation.MAX_HEAD_DIM}, "
                "or implementation='reference'."
            )


def check_window(local_window_size: int | Sequence[int | None] | None) -> tuple[int, int]:
    """How many keys before and after the diagonal are visible; -1 for all of them."""
    given: Sequence[Any] = (local_window_size, local_window_size)
    if isinstance(local_window_size, (tuple, list)):
        given = local_window_size
    sizes = [_window_side(size) for size in given]
    left, right = sizes if len(sizes) == 2 else (None, None)
    if left is None or right is None:
        raise ValueError(
            f"local_window_size is {local_window_size!r}; supported are None (no window), an int "
            ">= 0, or a pair (left, right) of ints >= 0 or None."
        )
    return left, right


def _window_side(size: Any) -> int | None:
    """-1 for no window, None for what is not a size."""
    if size is None:
        return -1
    count = validation.index(size)
    if count is None or count < 0:
        return None
    # A window past int32 is a window over everything that an array can hold.
    return min(count, validation.MAX_INT32)


def check_dropout_rate(dropout_rate: float) -> float:
    """The rate as the kernels hold it: a float32 in [0, 1)."""
    what = "a Python number in [0, 1)"
    rate = float(np.float32(validation.number("dropout_rate", dropout_rate, what)))
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate is {dropout_rate!r}; it must be {what}.")
    return rate


def check_max_seqlen(name: str, value: int) -> int:
    """The length as an int that int32 holds."""
    return min(validation.check_count(name, value), validation.MAX_INT32)


def check_flag(name: str, value: bool) -> bool:
    """The value as a bool; a tracer or a string is refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; it must be a Python bool.")
    return bool(value)


def workspace_bytes(kind: Pass, shape: AttentionShape) -> int:
    """Scratch memory of a kernel: it depends on shapes and static options alone.

    Blocks of rows and keys remember the span of their segment ids, to skip pairs that share none.
    The forward pass keeps the outputs of spans of keys, see split_bytes().
    The backward pass keeps dQ in float32, delta, and counters that order the sums of dQ; the kernel
    for Hopper GPUs counts its rows in blocks, of which every sequence begins one.
    """
    if kind == "forward":
        return 256 + _segment_bytes(shape) + split_bytes(shape)
    if kind == "bias_grad":
        return 256 + _segment_bytes(shape)
    if kind == "row_bias_backward":  # gradients of every key, by heads, in float32
        sums = 256 + 4 * shape.batch * shape.q_heads * shape.keys
        return sums + workspace_bytes("backward", shape)
    rows = shape.batch * shape.query_rows * shape.q_heads
    padded = -(-shape.head_dim // 32) * 32
    counters = shape.q_heads * shape.batch * (_tiles(shape.query_rows) + shape.sequences)
    portable = 4 * rows * padded + 4 * rows + 4 * counters
    return 2048 + _segment_bytes(shape) + max(portable, _hopper_backward_bytes(shape))


def split_bytes(shape: AttentionShape) -> int:
    """Outputs and LSE of the most spans into which the forward kernel may split the keys.

    They are float32. 0 where it never splits them, and where sizes are symbolic: without the
    workspace the kernel does without splits.
    """
    if shape.symbolic or not may_split(shape):
        return 0
    rows = shape.batch * shape.query_rows * shape.q_heads
    if not rows:
        return 0
    splits = min(SPLIT_SMS * SPLIT_TILE_ROWS // rows, shape.keys // LEAST_SPLIT_KEYS, MAX_SPLITS)
    return 4 * splits * rows * (shape.value_dim + 1) if splits > 1 else 0


def may_split(shape: AttentionShape) -> bool:
    """Whether the kernel for Hopper GPUs may split the keys of one of these sequences.

    Whether it does depends on the batch, and the bits of the result on that.
    """
    rows = shape.query_rows * shape.q_heads
    return (
        shape.dtype != "float32"
        and (shape.head_dim | shape.value_dim) % 8 == 0
        and shape.keys >= 2 * LEAST_SPLIT_KEYS
        and (2 * rows <= SPLIT_SMS * SPLIT_TILE_ROWS or shape.sequences > 1)
    )


def _hopper_backward_bytes(shape: AttentionShape) -> int:
    """As ffi/attention/hopper/backward lays its workspace out; 0 for what that does not take."""
    dim = max(shape.head_dim, shape.value_dim)
    tile = next((tile for tile in (64, 96, 128, 192, 256) if dim <= tile), 0)
    if shape.dtype == "float32" or not tile or not shape.query_rows:
        return 0
    block = 128 if tile == 64 else 64
    turns = 2 * (block // 64) if tile <= 128 else 16  # half as many rows a block with features
    blocks = shape.query_rows // block + max(shape.sequences, 1)
    return shape.batch * shape.q_heads * blocks * (4 * block * (tile + 2) + 4 * turns)


def _segment_bytes(shape: AttentionShape) -> int:
    if not shape.segments:
        return 0
    return 8 * shape.batch * (_tiles(shape.query_rows) + _tiles(shape.keys))


def _tiles(length: int) -> int:
    return -(-length // 64)


def result_types(kind: Pass, operands: Mapping[str, HasShape]) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and dtype of the results of a kernel that has these operands, by name."""
    query, value = operands["query"], operands["value"]
    batch, rows, q_heads, _ = query.shape
    statistics = (batch, q_heads, rows), np.dtype(np.float32)
    out = (batch, rows, q_heads, value.shape[3]), query.dtype
    others: dict[str, Any] = {"out": out, "lse": statistics, "delta": statistics}
    return [
        others[name] if name in others else (operands[name].shape, operands[name].dtype)
        for name in RESULTS[kind]
    ]


def kernel_shape(operands: Mapping[str, HasShape]) -> AttentionShape:
    """The sizes of a kernel's operands, by name, that are known to be right."""
    query, key, value = (operands[name] for name in ("query", "key", "value"))
    batch, rows, q_heads, head_dim = query.shape
    keys, kv_heads, value_dim = value.shape[1:]
    packed = is_given(operands["cu_seqlens_q"])
    return AttentionShape(
        batch,
        rows,
        keys,
        q_heads,
        kv_heads,
        head_dim,
        value_dim,
        validation.dtype_name(key),
        operands["cu_seqlens_q"].shape[1] - 1 if packed else 1,
        is_given(operands["query_segment_ids"]),
    )


def is_given(operand: HasShape) -> bool:
    """Whether an optional operand is there: a missing one is a single empty dimension."""
    return tuple(operand.shape) != (0,)


def _check_query_key_value(
    query: HasShape,
    key: HasShape,
    value: HasShape,
    q_layout: str,
    kv_layout: str,
    batch: str | None,
) -> AttentionShape:
    """Checks what every call has; the sizes, with a batch of 1 where there is none."""
    value_layout = kv_layout.replace("D", "Dv")
    validation.check_rank("query", query, q_layout)
    validation.check_rank("key", key, kv_layout)
    validation.check_rank("value", value, value_layout)
    dtype = validation.check_dtypes(query, key=key, value=value)
    lead = 1 if batch is None else query.shape[0]
    rows, q_heads, head_dim = query.shape[-3:]
    keys, kv_heads, key_dim = key.shape[-3:]
    if batch and key.shape[0] != lead:
        raise ValueError(f"key has batch size {key.shape[0]} and query has {lead}.")
    if tuple(value.shape[:-1]) != tuple(key.shape[:-1]):
        raise ValueError(
            f"value has shape {tuple(value.shape)} and key has {tuple(key.shape)}; all but the "
            f"last dimension must be equal: {value_layout} and {kv_layout}."
        )
    if key_dim != head_dim:
        raise ValueError(f"key has head dimension {key_dim} and query has {head_dim}.")
    if kv_heads < 1 or q_heads < 1 or q_heads % kv_heads != 0:
        raise ValueError(
            f"query has {q_heads} heads (shape {tuple(query.shape)} is {q_layout}) and key has "
            f"{kv_heads} (shape {tuple(key.shape)} is {kv_layout}); the query heads must be a "
            "multiple of the key/value heads."
        )
    for name, count in (("query", rows), ("key", keys)):
        if isinstance(count, int) and count >= MAX_ROWS:
            raise NotImplementedError(f"{name} has {count} rows; supported are < 2**30.")
    return AttentionShape(
        lead, rows, keys, q_heads, kv_heads, head_dim, value.shape[-1], dtype, 1, False
    )


def _check_per_sequence(
    options: Mapping[str, HasShape | None],
    sequences: int,
    batch: str,
    q_heads: int,
    rows: tuple[str, int],
    keys: tuple[str, int],
) -> None:
    """Checks the optional arrays that have a row a sequence, or one row for all."""
    sinks, slopes, bias = (options.get(name) for name in ("sinks", "alibi_slopes", "bias"))
    if sinks is not None:
        validation.check_per_head("sinks", sinks, [(q_heads,)], "[Hq]")
    if slopes is not None:
        shapes: list[tuple[int, ...]] = [(q_heads,), (sequences, q_heads)]
        validation.check_per_head("alibi_slopes", slopes, shapes, f"[Hq] or [{batch}, Hq]")
    for name in ("query_seq_lengths", "key_value_seq_lengths"):
        lengths = options.get(name)
        if lengths is not None:
            validation.check_integers(name, lengths, (sequences,), f"[{batch}]")
    if bias is None:
        return
    layout = f"[{batch} or 1, Hq or 1, {rows[0]} or 1, {keys[0]}]"
    wanted = (sequences, q_heads, rows[1], keys[1])
    validation.check_rank("bias", bias, layout)
    sizes = zip(bias.shape[:3], wanted[:3], strict=True)
    if any(size not in (1, full) for size, full in sizes) or bias.shape[3] != keys[1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be {layout}, of sizes {wanted} or 1."
        )
    dtype = validation.dtype_name(bias)
    if dtype not in (*validation.DTYPES, "float64", "bool"):
        raise ValueError(f"bias has dtype {dtype}; it must be a floating-point dtype or bool.")


def _check_segments(
    shape: AttentionShape,
    options: Mapping[str, HasShape | None],
    rows: tuple[str, tuple[int, ...]],
    keys: tuple[str, tuple[int, ...]],
) -> AttentionShape:
    """Checks the segment ids and notes whether there are any."""
    names = ("query_segment_ids", "key_value_segment_ids")
    given = [options.get(name) for name in names]
    for name, ids, (layout, sizes) in zip(names, given, (rows, keys), strict=True):
        if ids is not None:
            validation.check_integers(name, ids, sizes, layout)
    missing = [name for name, ids in zip(names, given, strict=True) if ids is None]
    if len(missing) == 1:
        raise ValueError(f"{missing[0]} is None; {' and '.join(names)} must be given together.")
    return dataclasses.replace(shape, segments=not missing)
