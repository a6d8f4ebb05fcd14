"""What an attention case is, and the inputs of a case. The table is in attention_table.py."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
    "bool": np.bool_,
}
# Segment ids of padding: no query has the keys' and no key has the queries'.
_QUERY_PADDING, _KEY_PADDING = -1, -2


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """One call of ``flash_attention`` or ``flash_attention_varlen``: sizes, options, inputs.

    With ``cu_seqlens_q`` and ``cu_seqlens_k`` the call is the packed one: N sequences in
    ``query_length`` query and ``key_length`` key rows; the offsets are passed as they are, also
    bad ones. Otherwise there are ``batch`` sequences of those lengths.

    ``bias`` names the dimensions that are not 1, out of "bhq"; ``bias_hides`` puts -inf in places
    (a boolean bias hides anyway). ``alibi_slopes`` is "head" for [Hq] slopes, "batch" for [B, Hq].
    ``segments`` is "packed" for ascending ids, "shuffled" for random ones, "padded" for ascending
    ids and a tail of padding that neither sees nor is seen. ``lse_cotangent`` differentiates
    through the log-sum-exp as well. Queries and keys are normal numbers times ``query_factor`` and
    ``key_factor``. ``top_left`` counts the diagonal from the first query and the first key, as
    ``dot_product_attention`` does.
    """

    name: str
    batch: int = 2
    query_length: int = 100
    key_length: int | None = None
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    value_dim: int | None = None
    dtype: str = "bfloat16"
    cu_seqlens_q: tuple[int, ...] | None = None
    cu_seqlens_k: tuple[int, ...] | None = None
    max_seqlens: tuple[int, int] | None = None
    scale: float | None = None
    is_causal: bool = False
    top_left: bool = False
    local_window_size: int | tuple[int | None, int | None] | None = None
    sink_tokens: int = 0
    sinks: bool = False
    alibi_slopes: str | None = None
    logits_soft_cap: float | None = None
    bias: str | None = None
    bias_dtype: str = "float32"
    bias_hides: bool = False
    query_lengths: tuple[int, ...] | None = None
    kv_lengths: tuple[int, ...] | None = None
    segments: str | None = None
    dropout_rate: float = 0.0
    deterministic: bool = False
    lse_cotangent: bool = False
    query_factor: float = 1.0
    key_factor: float = 1.0

    @property
    def varlen(self) -> bool:
        """Whether sequences are packed along one axis."""
        return self.cu_seqlens_q is not None

    @property
    def sequences(self) -> int:
        """How many sequences there are, B or N."""
        return len(self.cu_seqlens_q) - 1 if self.cu_seqlens_q is not None else self.batch

    @property
    def query_heads(self) -> int:
        """Hq."""
        return self.kv_heads * self.group

    @property
    def keys(self) -> int:
        """K, or Tk."""
        return self.query_length if self.key_length is None else self.key_length

    @property
    def values(self) -> int:
        """Dv."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def numpy_dtype(self) -> Any:
        """The scalar type of query, key and value."""
        return _DTYPES[self.dtype]

    @property
    def softmax_scale(self) -> float:
        """The factor on the logits."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def window(self) -> tuple[int | None, int | None]:
        """(left, right), None for no limit."""
        size = self.local_window_size
        left, right = size if isinstance(size, tuple) else (size, size)
        return left, 0 if self.is_causal and right is not None else right

    @property
    def max_lengths(self) -> tuple[int, int]:
        """The longest sequence: what a packed call is told, and the last axes of its bias."""
        if self.max_seqlens is not None:
            return self.max_seqlens
        if not self.varlen:
            return self.query_length, self.keys
        rows = [self.rows(n) for n in range(self.sequences)]
        longest = [max((r[i].stop - r[i].start for r in rows), default=0) for i in (0, 1)]
        return longest[0], longest[1]

    def rows(self, sequence: int) -> tuple[slice, slice]:
        """The query and the key rows of a sequence on the axis that holds its rows."""
        if self.cu_seqlens_q is None or self.cu_seqlens_k is None:
            return slice(0, self.query_length), slice(0, self.keys)
        found = []
        ends = (self.cu_seqlens_q, self.query_length), (self.cu_seqlens_k, self.keys)
        for offsets, total in ends:
            clean = np.maximum.accumulate(np.clip(offsets, 0, total))
            found.append(slice(int(clean[sequence]), int(clean[sequence + 1])))
        return found[0], found[1]

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the public function that are not arrays."""
        options: dict[str, Any] = {
            "scale": self.scale,
            "is_causal": self.is_causal,
            "local_window_size": self.local_window_size,
            "sink_tokens": self.sink_tokens,
            "logits_soft_cap": self.logits_soft_cap,
            "dropout_rate": self.dropout_rate,
            "deterministic": self.deterministic,
        }
        if self.varlen:
            options["max_seqlen_q"], options["max_seqlen_k"] = self.max_lengths
        return options


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """The array operands of one call and its cotangents, on the host.

    The fields are named as the arguments of the public functions, but for the last two: ``dout``
    like the output, ``dlse`` like the log-sum-exp (None if it is not differentiated through).
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    cu_seqlens_q: np.ndarray | None
    cu_seqlens_k: np.ndarray | None
    bias: np.ndarray | None
    sinks: np.ndarray | None
    alibi_slopes: np.ndarray | None
    query_seq_lengths: np.ndarray | None
    key_value_seq_lengths: np.ndarray | None
    query_segment_ids: np.ndarray | None
    key_value_segment_ids: np.ndarray | None
    dropout_seed: np.ndarray | None
    dout: np.ndarray
    dlse: np.ndarray | None

    def arrays(self) -> dict[str, np.ndarray]:
        """The operands that there are, by the names of the arguments."""
        fields = (field.name for field in dataclasses.fields(self))
        found = {name: getattr(self, name) for name in fields if name not in ("dout", "dlse")}
        return {name: array for name, array in found.items() if array is not None}


def make_attention_inputs(case: AttentionCase, seed: int = 0) -> AttentionInputs:
    """Draws the inputs of a case. Rows that lengths, padding or offsets hide hold NaN and infinity.

    Args:
      case: the case.
      seed: another seed gives other numbers.

    Returns:
      Arrays of the case's shapes and dtypes.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    batch = () if case.varlen else (case.batch,)
    heads = case.query_heads

    def normal(shape: tuple[int, ...], dtype: Any, factor: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * factor).astype(dtype)

    rows_q, rows_k = (*batch, case.query_length), (*batch, case.keys)
    dtype = case.numpy_dtype
    query = normal((*rows_q, heads, case.head_dim), dtype, case.query_factor)
    key = normal((*rows_k, case.kv_heads, case.head_dim), dtype, case.key_factor)
    value = normal((*rows_k, case.kv_heads, case.values), dtype)
    dout = normal((*rows_q, heads, case.values), dtype)
    ids_q, ids_k = _segment_ids(case, rng, rows_q), _segment_ids(case, rng, rows_k)
    if case.segments == "padded":
        _pad(ids_q, _QUERY_PADDING)
        _pad(ids_k, _KEY_PADDING)

    bias = _bias(case, rng)
    hidden_q, hidden_k = _hidden_rows(case, rows_q, rows_k)
    for array in (query, dout):
        _poison(array, hidden_q)
    for array in (key, value):
        _poison(array, hidden_k)
    if bias is not None and bias.dtype != np.bool_ and case.bias == "bhq":
        for n in range(case.sequences):
            q_len, k_len = _valid_lengths(case, n)
            bias[n, :, q_len:], bias[n, :, :, k_len:] = np.nan, np.nan

    slopes = None
    if case.alibi_slopes is not None:
        slopes = np.exp2(-8.0 * np.arange(1, heads + 1) / heads).astype(np.float32)
        if case.alibi_slopes == "batch":
            slopes = slopes * np.linspace(0.5, 2, case.sequences, dtype=np.float32)[:, None]

    def integers(numbers: tuple[int, ...] | None) -> np.ndarray | None:
        return None if numbers is None else np.asarray(numbers, np.int32)

    return AttentionInputs(
        query=query,
        key=key,
        value=value,
        cu_seqlens_q=integers(case.cu_seqlens_q),
        cu_seqlens_k=integers(case.cu_seqlens_k),
        bias=bias,
        sinks=rng.normal(0, 3, heads).astype(np.float32) if case.sinks else None,
        alibi_slopes=slopes,
        query_seq_lengths=integers(case.query_lengths),
        key_value_seq_lengths=integers(case.kv_lengths),
        query_segment_ids=ids_q if case.segments else None,
        key_value_segment_ids=ids_k if case.segments else None,
        dropout_seed=rng.integers(0, 2**32, 2, np.uint32) if case.dropout_rate else None,
        dout=dout,
        dlse=normal((*batch, heads, case.query_length), np.float32) if case.lse_cotangent else None,
    )


def _segment_ids(
    case: AttentionCase, rng: np.random.Generator, rows: tuple[int, ...]
) -> np.ndarray:
    """int32 ids of about four segments."""
    if case.segments is None:
        return np.zeros(rows, np.int32)
    ids = rng.integers(0, 4, rows, np.int32)
    return ids if case.segments == "shuffled" else np.sort(ids, axis=-1)


def _pad(ids: np.ndarray, padding: int) -> None:
    """The last fifth of the rows becomes padding."""
    ids[..., ids.shape[-1] - ids.shape[-1] // 5 :] = padding


def _bias(case: AttentionCase, rng: np.random.Generator) -> np.ndarray | None:
    if case.bias is None:
        return None
    longest_q, longest_k = case.max_lengths
    full = {"b": case.sequences, "h": case.query_heads, "q": longest_q}
    shape = (*(size if name in case.bias else 1 for name, size in full.items()), longest_k)
    if case.bias_dtype == "bool":
        return rng.random(shape) < 0.7
    bias = rng.standard_normal(shape, np.float32)
    if case.bias_hides:
        bias[rng.random(shape) < 0.3] = -np.inf
    return bias.astype(_DTYPES[case.bias_dtype])


def _valid_lengths(case: AttentionCase, sequence: int) -> tuple[int, int]:
    """How many rows of a sequence the lengths leave."""
    found = []
    for rows, lengths in zip(
        case.rows(sequence), (case.query_lengths, case.kv_lengths), strict=True
    ):
        size = rows.stop - rows.start
        found.append(size if lengths is None else min(max(lengths[sequence], 0), size))
    return found[0], found[1]


def _hidden_rows(
    case: AttentionCase, rows_q: tuple[int, ...], rows_k: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows lie past a length, or outside of every packed sequence."""
    hidden = np.ones(rows_q, bool), np.ones(rows_k, bool)
    for n in range(case.sequences):
        for mask, rows, length in zip(hidden, case.rows(n), _valid_lengths(case, n), strict=True):
            own = mask if case.varlen else mask[n]
            own[rows.start : rows.start + length] = False
    return hidden


def _poison(array: np.ndarray, where: np.ndarray) -> None:
    """NaN and infinity by turns in the rows of ``array`` [..., rows, H, D]."""
    poison = np.where(np.arange(where.shape[-1]) % 2, np.inf, np.nan).astype(array.dtype)
    array[where] = np.broadcast_to(poison, where.shape)[where][:, None, None]
