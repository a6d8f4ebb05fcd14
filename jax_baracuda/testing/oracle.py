"""flash_decode in float64 numpy, one head of one request at a time: what the tests believe."""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_baracuda.testing.cases import DecodeCase, DecodeInputs


@dataclasses.dataclass(frozen=True)
class DecodeOracle:
    """The exact result and the sizes of the numbers that rounding errors grow with.

    Attributes:
      out: float64 [B, Hq, D].
      lse: float64 [B, Hq], natural logarithm, -inf where no key is visible.
      out_noise: the largest root of the summed squares of the terms of an output, sum (p v)^2: an
        error of e in each term gives about e times this where the terms cancel.
      logit_size: the largest scale * sum |q k|: float32 sums round in proportion to it.
    """

    out: np.ndarray
    lse: np.ndarray
    out_noise: float
    logit_size: float


def decode_oracle(case: DecodeCase, inputs: DecodeInputs) -> DecodeOracle:
    """Computes a case from its definition, touching no cache row that is not visible.

    Args:
      case: the sizes and options.
      inputs: the arrays, as from ``make_inputs``.

    Returns:
      The exact result.
    """
    out = np.zeros((case.batch, case.query_heads, case.head_dim))
    lse = np.full((case.batch, case.query_heads), -np.inf)
    noise = size = 0.0
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    visible = case.visible()

    for request in range(case.batch):
        positions = np.flatnonzero(visible[request])
        if not positions.size:
            continue
        own_position = positions[-1]  # the query is the last row of its history
        for head in range(case.query_heads):
            kv_head = head // case.group
            if case.kv_layout == "NHD":
                key = inputs.key[request, positions, kv_head].astype(np.float64)
                value = inputs.value[request, positions, kv_head].astype(np.float64)
            else:
                key = inputs.key[request, kv_head, positions].astype(np.float64)
                value = inputs.value[request, kv_head, positions].astype(np.float64)
            query = inputs.query[request, head].astype(np.float64)
            logits = scale * (key @ query)
            size = max(size, float(np.max(abs(scale) * (np.abs(key) @ np.abs(query)))))
            if case.logits_soft_cap is not None:
                logits = case.logits_soft_cap * np.tanh(logits / case.logits_soft_cap)
            if inputs.alibi_slopes is not None:
                slopes = np.broadcast_to(inputs.alibi_slopes, (case.batch, case.query_heads))
                logits = logits - float(slopes[request, head]) * (own_position - positions)
            terms = logits
            if inputs.sinks is not None:
                terms = np.append(logits, float(inputs.sinks[head]))
            top = terms.max()
            total = top + np.log(np.exp(terms - top).sum())
            weights = np.exp(logits - total)
            out[request, head] = weights @ value
            lse[request, head] = total
            noise = max(noise, float(np.sqrt(((weights[:, None] * value) ** 2).sum(0)).max()))
    return DecodeOracle(out, lse, noise, size)
