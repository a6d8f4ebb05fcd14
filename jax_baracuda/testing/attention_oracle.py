"""Attention and its gradients in float64 numpy, head by head: what the tests believe.

Written from the definition, apart from the reference in ``_src``: its own mask, its own Philox.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jax_baracuda.testing.attention_cases import AttentionCase, AttentionInputs


@dataclasses.dataclass(frozen=True)
class AttentionOracle:
    """The exact results and the sizes of the numbers that rounding errors grow with.

    Attributes:
      results: float64 arrays by name: "out" and "lse" (natural, -inf where no key is visible); with
        gradients also "dquery", "dkey", "dvalue", and "dbias" and "dsinks" where there are such
        operands; each of the shape of what it is named after.
      noise: for every result but "lse", the largest root of the summed squares of the terms of an
        element: an error of e in each term gives about e times this where the terms cancel.
      logit_size: the largest scale * sum |q k|: float32 sums round in proportion to it.
    """

    results: dict[str, np.ndarray]
    noise: dict[str, float]
    logit_size: float


class _Sums:
    """Results, and beside each the sums of its squared terms."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.values = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.squares = {name: np.zeros(shape) for name, shape in shapes.items()}

    def add(self, name: str, at: tuple[Any, ...], value: np.ndarray, square: np.ndarray) -> None:
        self.values[name][at] += value
        self.squares[name][at] += square

    def noise(self) -> dict[str, float]:
        return {name: float(np.sqrt(np.max(s, initial=0.0))) for name, s in self.squares.items()}


def attention_oracle(
    case: AttentionCase, inputs: AttentionInputs, *, gradients: bool = False
) -> AttentionOracle:
    """Computes a case from its definition, touching no row that is not visible.

    Args:
      case: the sizes and options.
      inputs: the arrays, as from ``make_attention_inputs``.
      gradients: also of sum(dout * out) + sum(dlse * lse) with respect to every floating operand
        but ``alibi_slopes``.

    Returns:
      The exact result.
    """
    shapes = {"out": inputs.dout.shape}
    if gradients:
        operands = ("query", "key", "value", "bias", "sinks")
        arrays = {name: getattr(inputs, name) for name in operands}
        shapes |= {f"d{name}": a.shape for name, a in arrays.items() if _differentiable(a)}
    sums = _Sums(shapes)
    batch = () if case.varlen else (case.batch,)
    lse = np.full((*batch, case.query_heads, case.query_length), -np.inf)
    size = 0.0
    for n in range(case.sequences):
        shown = _visible(case, inputs, n)
        for head in range(case.query_heads):
            one = _Head(case, inputs, n, head, shown)
            size = max(size, one.forward(sums, lse))
            if gradients:
                one.backward(sums)
    return AttentionOracle(sums.values | {"lse": lse}, sums.noise(), size)


class _Head:
    """One query head of one sequence, cut down to the rows that see and the keys that are seen."""

    def __init__(
        self, case: AttentionCase, inputs: AttentionInputs, n: int, head: int, shown: np.ndarray
    ) -> None:
        self.case, self.inputs, self.n, self.head = case, inputs, n, head
        bias = self.bias_at = None
        if inputs.bias is not None:
            first = [
                0 if size == 1 else i
                for size, i in zip(inputs.bias.shape[:2], (n, head), strict=True)
            ]
            bias = inputs.bias[first[0], first[1]]
            bias = np.broadcast_to(bias, (*bias.shape[:-2], *case.max_lengths))
            bias = bias[: shown.shape[0], : shown.shape[1]]
            shown = shown & (bias if bias.dtype == np.bool_ else bias > -np.inf)
            self.bias_at = first
        rows, keys = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        self.cut = np.ix_(rows, keys)
        self.rows, self.keys = rows, keys
        self.shown = shown[self.cut]
        self.bias = None if bias is None or bias.dtype == np.bool_ else bias[self.cut].astype(float)
        row_slices = case.rows(n)
        batch = () if case.varlen else (n,)
        self.q_rows = (*batch, row_slices[0].start + rows)
        self.k_rows = (*batch, row_slices[1].start + keys)
        kv_head = head // case.group
        self.at_q, self.at_k = (*self.q_rows, head), (*self.k_rows, kv_head)
        self.at_lse = (*batch, head, self.q_rows[-1])
        self.q = inputs.query[self.at_q].astype(float)
        self.k = inputs.key[self.at_k].astype(float)
        self.v = inputs.value[self.at_k].astype(float)
        self.diagonal = _diagonal(case, *(s.stop - s.start for s in row_slices))

    def forward(self, sums: _Sums, lse: np.ndarray) -> float:
        """Adds the output and the log-sum-exp; the largest scale * sum |q k|."""
        case, inputs = self.case, self.inputs
        if not self.rows.size:
            self.p = self.dropped = np.zeros(self.shown.shape)
            return 0.0
        scale = case.softmax_scale
        logits = scale * (self.q @ self.k.T)
        size = float(np.max(abs(scale) * (np.abs(self.q) @ np.abs(self.k.T))))
        self.slope_of_cap: np.ndarray | float = 1.0
        if case.logits_soft_cap is not None:
            bent = np.tanh(logits / case.logits_soft_cap)
            self.slope_of_cap = 1 - bent**2
            logits = case.logits_soft_cap * bent
        if self.bias is not None:
            logits = logits + np.where(self.shown, self.bias, 0)
        if inputs.alibi_slopes is not None:
            slopes = np.broadcast_to(inputs.alibi_slopes, (case.sequences, case.query_heads))
            distance = np.abs(self.diagonal[self.rows][:, None] - self.keys)
            logits = logits - float(slopes[self.n, self.head]) * distance
        logits = np.where(self.shown, logits, -np.inf)
        top = logits.max(1)
        if inputs.sinks is not None:
            top = np.maximum(top, float(inputs.sinks[self.head]))
        total = np.exp(logits - top[:, None]).sum(1)
        if inputs.sinks is not None:
            total = total + np.exp(float(inputs.sinks[self.head]) - top)
        self.lse = top + np.log(total)
        lse[self.at_lse] = self.lse

        self.p = np.exp(logits - self.lse[:, None])
        self.factor: np.ndarray | float = 1.0
        if case.dropout_rate:
            keep = dropout_keep(inputs, case, self.n, self.head)[self.cut]
            self.factor = keep / (1 - float(np.float32(case.dropout_rate)))
        self.dropped = self.p * self.factor
        self.out = self.dropped @ self.v
        sums.add("out", self.at_q, self.out, self.dropped**2 @ self.v**2)
        return size

    def backward(self, sums: _Sums) -> None:
        """Adds the gradients."""
        if not self.rows.size:
            return
        dout = self.inputs.dout[self.at_q].astype(float)
        delta = (dout * self.out).sum(1)
        delta_size = np.sqrt((dout**2 * self.out**2).sum(1)) + np.abs(delta)
        if self.inputs.dlse is not None:
            dlse = self.inputs.dlse[self.at_lse].astype(float)
            delta = delta - dlse
            delta_size += np.abs(dlse)
        d_logits = self.p * (self.factor * (dout @ self.v.T) - delta[:, None])
        # How large the terms are whose difference that is.
        terms = np.sqrt(dout**2 @ self.v.T**2)
        terms = self.p * (self.factor * terms + delta_size[:, None])
        if self.bias is not None:
            self._add_bias(sums, d_logits, terms**2)
        if self.inputs.sinks is not None:
            p_sink = np.exp(float(self.inputs.sinks[self.head]) - self.lse)
            squares = (p_sink * delta_size) ** 2
            sums.add("dsinks", (self.head,), -(p_sink @ delta), squares.sum())
        slope = self.slope_of_cap * self.case.softmax_scale
        d_logits, terms = d_logits * slope, (terms * slope) ** 2
        # Keys are all different ones here, so that += on fancy indices loses nothing.
        sums.add("dquery", self.at_q, d_logits @ self.k, terms @ self.k**2)
        sums.add("dkey", self.at_k, d_logits.T @ self.q, terms.T @ self.q**2)
        sums.add("dvalue", self.at_k, self.dropped.T @ dout, self.dropped.T**2 @ dout**2)

    def _add_bias(self, sums: _Sums, d_logits: np.ndarray, squares: np.ndarray) -> None:
        assert self.bias_at is not None
        b, h = self.bias_at
        if sums.values["dbias"].shape[2] == 1:
            sums.add("dbias", (b, h, 0, self.keys), d_logits.sum(0), squares.sum(0))
        else:
            at = (b, h, *self.cut)
            sums.add("dbias", at, d_logits, squares)


def _differentiable(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype != np.bool_


def _diagonal(case: AttentionCase, queries: int, keys: int) -> np.ndarray:
    """The key position that each query row sits at."""
    return np.arange(queries) + (0 if case.top_left else keys - queries)


def _visible(case: AttentionCase, inputs: AttentionInputs, n: int) -> np.ndarray:
    """Which keys of a sequence its queries see but for the bias: bool [S, K] of its own lengths."""
    slices = case.rows(n)
    queries, keys = (rows.stop - rows.start for rows in slices)
    i, j = np.arange(queries)[:, None], np.arange(keys)[None]
    shown = np.ones((queries, keys), bool)
    if inputs.query_seq_lengths is not None:
        shown &= i < inputs.query_seq_lengths[n]
    if inputs.key_value_seq_lengths is not None:
        shown &= j < inputs.key_value_seq_lengths[n]
    if inputs.query_segment_ids is not None and inputs.key_value_segment_ids is not None:
        ids_q, ids_k = inputs.query_segment_ids, inputs.key_value_segment_ids
        if not case.varlen:
            ids_q, ids_k = ids_q[n], ids_k[n]
        shown &= ids_q[slices[0]][:, None] == ids_k[slices[1]]
    diagonal = _diagonal(case, queries, keys)[:, None]
    if case.is_causal:
        shown &= j <= diagonal
    left, right = case.window
    inside = np.ones_like(shown)
    if left is not None:
        inside &= j >= diagonal - left
    if right is not None:
        inside &= j <= diagonal + right
    return shown & (inside | (j < case.sink_tokens))


def dropout_keep(inputs: AttentionInputs, case: AttentionCase, n: int, head: int) -> np.ndarray:
    """Which weights of a sequence and head dropout keeps: bool [S, K] of its own lengths.

    Philox4x32 with 7 rounds (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    2011). One counter serves 4 x 16 elements of a 32 x 64 block: rows i, i + 8, i + 16 and i + 24,
    columns j, j + 1, j + 8, j + 9 and so on, j even. 15 bits decide about each, of sums of words.
    """
    assert inputs.dropout_seed is not None
    queries, keys = (rows.stop - rows.start for rows in case.rows(n))
    i, j = np.arange(queries), np.arange(keys)
    counter = np.broadcast_arrays(
        ((i // 32) * 8 + i % 8).astype(np.uint32)[:, None],
        ((j // 64) * 4 + j % 8 // 2).astype(np.uint32)[None],
        np.uint32(head),
        np.uint32(n),
    )
    words = philox4x32(counter, (int(inputs.dropout_seed[0]), int(inputs.dropout_seed[1])))
    index = 2 * ((i // 8) % 2)[:, None] + ((j // 8) % 2)[None]
    part = 4 * (i // 16 % 2)[:, None] + (j // 16 % 4)[None]
    factors = [pow(0x2C9277B5, n, 2**32) if n else 0 for n in range(8)]
    factor = np.array(factors, np.uint64)[part]
    word = np.choose(index, words) + factor * np.choose((index + 1) % 4, words).astype(np.uint64)
    bits = word // np.where(j % 2, np.uint64(2**16), np.uint64(1))[None] % np.uint64(2**15)
    keep: np.ndarray = bits >= dropped_steps(case.dropout_rate)
    return keep


def dropped_steps(rate: float) -> int:
    """The rate, in float32 as the kernels hold it, as the nearest multiple of 2^-15 below 1."""
    return min(int(np.floor(float(np.float32(rate)) * 2**15 + 0.5)), 2**15 - 1)


def philox4x32(
    counter: list[np.ndarray] | tuple[np.ndarray, ...], key: tuple[int, int], rounds: int = 7
) -> list[np.ndarray]:
    """The four random words of each counter: uint32 arrays of the counters' shape."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) for word in counter]
    k = list(key)
    for _ in range(rounds):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & low,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & low,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return [word.astype(np.uint32) for word in c]
