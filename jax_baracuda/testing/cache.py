"""Runs an append or a rotation, and judges the result.

The oracle is float64 numpy, one token at a time. Angles alone are float32, as the ops define them:
at position 10^6 the rounding of an angle is far larger than that of its sine.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from jax_baracuda._src.cache import frequencies
from jax_baracuda.testing.cache_cases import AppendCase, AppendInputs, RopeCase
from jax_baracuda.testing.calls import jit_once
from jax_baracuda.testing.compare import Report, compare

Implementation = Literal["cuda", "reference"] | None


def rotate_exactly(x: np.ndarray, positions: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """``apply_rope`` of x [..., H, D] in float64, but for the angles."""
    rotation = frequencies.rotation(x.shape[-1], **options)
    angles = positions.astype(np.float32)[..., None] * rotation.inv_freq
    turns = rotation.attention_factor * np.exp(1j * angles.astype(np.float64))[..., None, :]
    width = 2 * len(rotation.inv_freq)
    out = x.astype(np.float64)
    half = width // 2
    first, second = slice(0, half), slice(half, width)
    if rotation.interleaved:
        first, second = slice(0, width, 2), slice(1, width, 2)
    turned = (out[..., first] + 1j * out[..., second]) * turns
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


def run_append(
    case: AppendCase, inputs: AppendInputs, *, implementation: Implementation = None
) -> tuple[np.ndarray, ...]:
    """Calls the public function under jit on the default device; its results on the host."""
    import jax_baracuda

    call = functools.partial(
        getattr(jax_baracuda, case.function),
        kv_layout=case.kv_layout,
        rope=case.rope,
        implementation=implementation,
    )
    results = jit_once(call, jax.default_backend())(jax.device_put(inputs.arrays))
    return tuple(np.asarray(result) for result in results)


def check_append(
    case: AppendCase, inputs: AppendInputs, results: tuple[np.ndarray, ...]
) -> list[Report]:
    """Judges the stores and the query: what is copied or left alone must be so bit for bit.

    Args:
      case: the case.
      inputs: what the results were computed from.
      results: the stores, and the rotated query if the case has one.

    Returns:
      A report for each result. Any may be not ok: nothing is raised.
    """
    arrays, stores = inputs.arrays, ("pages", "cache")[case.page_size is None]
    reports = []
    for letter, rows, got in zip("kv", (arrays["key"], arrays["value"]), results, strict=False):
        store = arrays[f"{letter}_{stores}"]
        rope = case.rope if letter == "k" else None
        reports.append(_check_store(f"{case.name} {letter}", case, inputs, rope, store, rows, got))
    if case.query_heads:
        assert case.rope is not None
        exact = rotate_exactly(_by_token(case, arrays["query"]), inputs.positions, case.rope)
        got = _by_token(case, results[2])
        reports.append(_check_rotated(f"{case.name} query", got, exact, case.numpy_dtype))
    assert len(results) == len(reports)
    return reports


def _by_token(case: AppendCase, rows: np.ndarray) -> np.ndarray:
    """New rows as [tokens, H, D]."""
    if case.page_size is None:
        rows = rows if case.kv_layout == "NHD" else rows.swapaxes(1, 2)
        return rows.reshape(-1, *rows.shape[2:])
    return rows


def _check_store(
    name: str,
    case: AppendCase,
    inputs: AppendInputs,
    rope: Mapping[str, Any] | None,
    store: np.ndarray,
    rows: np.ndarray,
    got: np.ndarray,
) -> Report:
    rows = _by_token(case, rows)
    want, turned = store.copy(), rows
    if rope is not None:
        turned = rotate_exactly(rows, inputs.positions, rope)
        assert got.shape == store.shape
        got = got.copy()

    def row_of(array: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        """[H, D], a view."""
        layer = array if case.layers is None else array[case.layer]
        slot, row = place
        view: np.ndarray = layer[slot, row] if case.kv_layout == "NHD" else layer[slot, :, row]
        return view

    kept = [index for index, place in enumerate(inputs.places) if place is not None]
    rotated = np.zeros((len(kept), *rows.shape[1:]), got.dtype)
    for number, index in enumerate(kept):
        place = inputs.places[index]
        assert place is not None
        row_of(want, place)[...] = rows[index]
        if rope is not None:
            rotated[number] = row_of(got, place)
            row_of(got, place)[...] = rows[index]  # judged apart
    if got.shape != want.shape or (_bits(got) != _bits(want)).any():
        return compare(np.zeros(1), np.ones(1), np.ones(1), name=f"{name}: other bits")
    if rope is None:
        return Report(name, True, 0.0, 0.0, 0.0, (), f"{name}: equal")
    return _check_rotated(name, rotated, turned[kept], case.numpy_dtype)


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _check_rotated(name: str, got: np.ndarray, exact: np.ndarray, dtype: Any) -> Report:
    """At most twice the rounding of the dtype, and some of float32's."""
    size = float(np.abs(exact).max(initial=0.0))
    epsilon = 4 * float(np.finfo(np.float32).eps) * size
    return compare(got, exact, exact.astype(dtype), name=name, epsilon=epsilon)


def run_rope(case: RopeCase, *, implementation: Implementation = None) -> np.ndarray:
    """Calls the public ``apply_rope`` under jit on the default device; the result on the host."""
    import jax_baracuda

    call = functools.partial(jax_baracuda.apply_rope, **case.options, implementation=implementation)
    x, positions = case.inputs()
    operands = jax.device_put({"x": x, "positions": positions})
    return np.asarray(jit_once(call, jax.default_backend())(operands))


def check_rope(case: RopeCase, out: np.ndarray) -> Report:
    """Judges the result of a rotation; what is not rotated must be equal."""
    x, positions = case.inputs()
    exact = rotate_exactly(x, positions, case.options)
    width = case.options.get("rotary_dim", x.shape[-1])
    if out.shape != x.shape or (_bits(out[..., width:]) != _bits(x[..., width:])).any():
        return compare(np.zeros(1), np.ones(1), np.ones(1), name=f"{case.name}: other bits")
    return _check_rotated(case.name, out, exact, case.numpy_dtype)
