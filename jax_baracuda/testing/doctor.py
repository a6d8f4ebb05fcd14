"""Every op on real input against its oracle: what ``python -m jax_baracuda`` runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import jax_baracuda
from jax_baracuda.testing.cases import DECODE_CASES, DecodeCase, make_inputs
from jax_baracuda.testing.decode import check_decode, run_decode
from jax_baracuda.testing.timing import time_chained

# A handful that covers dtypes, layouts, every option, empty requests, long caches and splits.
CHECKED = (
    "plain-bfloat16-HND",
    "plain-float16-NHD",
    "plain-float32-HND",
    "everything-bfloat16-NHD",
    "length-zero-sinks",
    "group-71-head-dim-256",
    "splits-133",
    "serving",
)


def run_checks() -> list[dict[str, Any]]:
    """Runs every op on the default device.

    Returns:
      One dict a case: "op", "case", "ok", "error" and "bound" (of the output, absolute),
      "lse_error", "ms" (a call, the data in cache if it fits) and "message" (what is wrong, or "").
    """
    chosen = [case for case in DECODE_CASES if case.name in CHECKED]
    return [_check_decode(case) for case in chosen]


def _check_decode(case: DecodeCase) -> dict[str, Any]:
    row: dict[str, Any] = {
        "op": "flash_decode",
        "case": case.name,
        "ok": False,
        "error": None,
        "bound": None,
        "lse_error": None,
        "ms": None,
        "message": "",
    }
    try:
        inputs = make_inputs(case)
        out, lse = check_decode(case, inputs, *run_decode(case, inputs))
        row |= {
            "ok": out.ok and lse.ok,
            "error": out.error,
            "bound": out.bound,
            "lse_error": lse.error,
            "message": " ".join(report.message for report in (out, lse) if not report.ok),
            "ms": _time_decode(case, inputs.arrays()),
        }
    except Exception as error:  # a broken op is a finding, not the end of the report
        row["ok"] = False
        row["message"] = f"{type(error).__name__}: {error}"
    return row


def _time_decode(case: DecodeCase, arrays: dict[str, Any]) -> float:
    operands = jax.tree.map(jnp.asarray, arrays)
    query = operands.pop("query")

    def op(query: jax.Array, operands: dict[str, Any]) -> jax.Array:
        out: jax.Array = jax_baracuda.flash_decode(query, **operands, **case.options())
        return out

    calls = 20 if jax.default_backend() == "gpu" else 1
    return time_chained(op, query, [(operands,)], calls=calls, seconds=0.05, samples=3).ms
