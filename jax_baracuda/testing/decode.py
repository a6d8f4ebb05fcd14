"""Runs a decode case and judges the result."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from jax_baracuda._src.decode.reference import flash_decode_reference
from jax_baracuda._src.decode.shapes import check_window
from jax_baracuda.testing.calls import host, jit_once
from jax_baracuda.testing.cases import DecodeCase, DecodeInputs, make_inputs
from jax_baracuda.testing.compare import Report, compare
from jax_baracuda.testing.oracle import DecodeOracle, decode_oracle

Implementation = Literal["cuda", "reference"] | None


def run_decode(
    case: DecodeCase, inputs: DecodeInputs, *, implementation: Implementation = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calls the public ``flash_decode`` under jit on the default device; (out, lse) on the host."""
    import jax_baracuda

    call = functools.partial(
        jax_baracuda.flash_decode, **case.options(), return_lse=True, implementation=implementation
    )
    arrays = jax.device_put(inputs.arrays())
    out, lse = jit_once(call, jax.default_backend())(arrays)
    return np.asarray(out), np.asarray(lse)


def reference_decode(case: DecodeCase, inputs: DecodeInputs) -> tuple[np.ndarray, np.ndarray]:
    """The same-precision reference: plain jnp on the CPU, products in the dtype of the case."""
    arrays: dict[str, Any] = inputs.arrays()
    for name in ("kv_lengths", "sinks", "alibi_slopes"):
        if arrays[name] is None:
            arrays[name] = np.zeros(0, np.int32 if name == "kv_lengths" else np.float32)
        elif name != "kv_lengths" and arrays[name].ndim == 1:
            arrays[name] = arrays[name][None]
    call = functools.partial(
        flash_decode_reference,
        nhd=case.kv_layout == "NHD",
        scale=case.head_dim**-0.5 if case.scale is None else case.scale,
        window_left=check_window(case.local_window_size),
        sink_tokens=case.sink_tokens,
        logits_soft_cap=case.logits_soft_cap or 0.0,
        dtype=case.dtype,
    )
    device = host()
    with jax.default_device(device):
        out, lse = jit_once(call, device.platform)(arrays)
    return np.asarray(out), np.asarray(lse)


def check_decode(
    case: DecodeCase,
    inputs: DecodeInputs,
    out: np.ndarray,
    lse: np.ndarray,
    *,
    oracle: DecodeOracle | None = None,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Report, Report]:
    """Judges the result of a case against the float64 oracle.

    Args:
      case: the case.
      inputs: what the result was computed from.
      out: [B, Hq, D].
      lse: [B, Hq].
      oracle: the exact result; computed when it is not given.
      reference: the same-precision result whose error is the yardstick; ``reference_decode`` when
        it is not given.

    Returns:
      The reports of the output and of the log-sum-exp. Either may be not ok: nothing is raised.
    """
    oracle = decode_oracle(case, inputs) if oracle is None else oracle
    ref_out, ref_lse = reference_decode(case, inputs) if reference is None else reference
    factor = 2.0 if case.logits_soft_cap is None else 3.0
    # What float32 sums, exponentials and logarithms lose whatever their order, relative to the
    # weights and absolute in the log-sum-exp; and half a unit in the last place of the output.
    sums = 8 * float(np.finfo(np.float32).eps) * (1 + oracle.logit_size)
    rounding = float(ml_dtypes.finfo(case.dtype).eps) / 2
    out_size = max(float(np.abs(oracle.out).max(initial=0.0)), oracle.out_noise)
    return (
        compare(
            out,
            oracle.out,
            ref_out,
            name=f"{case.name} out",
            factor=factor,
            epsilon=(rounding + sums) * out_size,
        ),
        compare(lse, oracle.lse, ref_lse, name=f"{case.name} lse", factor=factor, epsilon=sums),
    )


def check_call(case: DecodeCase, *, implementation: Implementation = "cuda") -> None:
    """Calls ``flash_decode`` on a case.

    Raises:
      AssertionError: a result is not right; names the worst coordinate.
    """
    inputs = make_inputs(case)
    results = run_decode(case, inputs, implementation=implementation)
    for report in check_decode(case, inputs, *results):
        report.check()
