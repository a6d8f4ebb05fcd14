"""Every op on real input against its oracle: what ``python -m jax_baracuda`` runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jax_baracuda
from jax_baracuda.testing.attention import (
    attention_function,
    check_attention,
    gradient_function,
    run_attention,
)
from jax_baracuda.testing.attention_cases import AttentionCase, make_attention_inputs
from jax_baracuda.testing.attention_table import ATTENTION_CASES
from jax_baracuda.testing.cache import check_append, check_rope, run_append, run_rope
from jax_baracuda.testing.cache_cases import (
    APPEND_CASES,
    ROPE_CASES,
    AppendCase,
    RopeCase,
    make_append_inputs,
)
from jax_baracuda.testing.cases import DECODE_CASES, DecodeCase, make_inputs
from jax_baracuda.testing.compare import Report
from jax_baracuda.testing.decode import check_decode, run_decode
from jax_baracuda.testing.int4 import INT4_CASES, Int4Case, check_int4
from jax_baracuda.testing.paged import (
    PagedCase,
    check_paged,
    make_paged_inputs,
    paged_arrays,
    paged_function,
    run_paged,
)
from jax_baracuda.testing.paged_cases import PAGED_DECODE_CASES, PAGED_PREFILL_CASES
from jax_baracuda.testing.timing import time_carried, time_chained

# A handful an op that covers dtypes, layouts, every option, empty requests, long and wide inputs.
CHECKED: dict[str, tuple[str, ...]] = {
    "flash_attention": (
        "lengths-1023-1024-causal",
        "mix-everything-bfloat16",
        "mix-everything-float32",
        "head-dim-256-bfloat16",
    ),
    "flash_attention backward": (
        "lengths-1024-1023-causal",
        "mix-everything-bfloat16",
        "mix-everything-float32",
        "value-dim-192-128-float16",
    ),
    "flash_attention_varlen": ("varlen-everything-bfloat16", "varlen-outside-float16"),
    "flash_attention_varlen backward": ("varlen-everything-bfloat16", "varlen-causal-lse-float32"),
    "flash_decode": (
        "plain-bfloat16-HND",
        "plain-float16-NHD",
        "plain-float32-HND",
        "everything-bfloat16-NHD",
        "length-zero-sinks",
        "group-71-head-dim-256",
        "splits-133",
        "serving",
    ),
    "paged_decode": (
        "bfloat16-128-page-16",
        "float16-80-page-1",
        "everything-page-64",
        "lengths-padded-batch",
        "uneven-float32-page-16",
        "serving",
    ),
    "paged_prefill": (
        "bfloat16-128-page-3",
        "full-page-16",
        "everything-page-3",
        "short-max",
        "uneven",
    ),
    "paged_append": ("pages-bfloat16-HND", "pages-float32-NHD", "pages-copy-float16-HND"),
    "kv_cache_append": ("cache-float16-NHD", "cache-ends", "cache-copy-bfloat16-HND"),
    "apply_rope": ("bfloat16-halves", "wide-float16-neighbours", "scaling-llama3"),
    "int4_matmul": tuple(case.name for case in INT4_CASES),
}
_PAGED: dict[str, Sequence[PagedCase]] = {
    "paged_decode": PAGED_DECODE_CASES,
    "paged_prefill": PAGED_PREFILL_CASES,
}
Outcome = tuple[Sequence[Report], float]


def run_checks() -> list[dict[str, Any]]:
    """Runs every op on the default device.

    Returns:
      One dict a case: "op", "case", "ok", "error" and "bound" (absolute; relative for int4_matmul;
      of the result that comes closest to its bound, the log-sum-exp apart), "lse_error", "ms" (a
      call, the data in cache if it fits) and "message" (what is wrong, or "").
    """
    return [_row(op, name, _check_of(op, name)) for op, names in CHECKED.items() for name in names]


def _check_of(op: str, name: str) -> Callable[[], Outcome]:
    if op == "flash_decode":
        decode = {case.name: case for case in DECODE_CASES}
        return functools.partial(_check_decode, decode[name])
    if op in _PAGED:
        paged = {case.name: case for case in _PAGED[op]}
        return functools.partial(_check_paged, paged[name])
    if op in ("paged_append", "kv_cache_append"):
        return functools.partial(_check_append, {case.name: case for case in APPEND_CASES}[name])
    if op == "apply_rope":
        return functools.partial(_check_rope, {case.name: case for case in ROPE_CASES}[name])
    if op == "int4_matmul":
        products = {case.name: case for case in INT4_CASES}
        return functools.partial(_check_int4, products[name])
    attention = {case.name: case for case in ATTENTION_CASES}
    gradients = op.endswith("backward")
    return functools.partial(_check_attention, attention[name], gradients=gradients)


def _row(op: str, case: str, check: Callable[[], Outcome]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "op": op,
        "case": case,
        "ok": False,
        "error": None,
        "bound": None,
        "lse_error": None,
        "ms": None,
        "message": "",
    }
    try:
        reports, ms = check()
    except Exception as error:  # a broken op is a finding, not the end of the report
        return row | {"message": f"{type(error).__name__}: {error}"}
    lse = next((report for report in reports if report.name.endswith(" lse")), None)
    closest = max((r for r in reports if r is not lse), key=_share_of_bound)
    return row | {
        "ok": all(report.ok for report in reports),
        "error": closest.error,
        "bound": closest.bound,
        "lse_error": None if lse is None else lse.error,
        "ms": ms,
        "message": " ".join(report.message for report in reports if not report.ok),
    }


def _share_of_bound(report: Report) -> float:
    if not report.ok:
        return float("inf")
    return report.error / report.bound if report.bound else 0.0


def _check_decode(case: DecodeCase) -> Outcome:
    inputs = make_inputs(case)
    reports = check_decode(case, inputs, *run_decode(case, inputs))

    def op(query: jax.Array, operands: dict[str, Any]) -> jax.Array:
        out: jax.Array = jax_baracuda.flash_decode(query, **operands, **case.options())
        return out

    return reports, _time(op, inputs.arrays())


def _check_paged(case: PagedCase) -> Outcome:
    inputs = make_paged_inputs(case)
    reports = check_paged(case, inputs, *run_paged(case, inputs))
    call = paged_function(case)
    arrays = paged_arrays(case, inputs)
    return reports, _time(lambda query, operands: call(query=query, **operands)[0], arrays)


def _check_append(case: AppendCase) -> Outcome:
    inputs = make_append_inputs(case)
    reports = check_append(case, inputs, run_append(case, inputs))
    append = functools.partial(
        getattr(jax_baracuda, case.function), kv_layout=case.kv_layout, rope=case.rope
    )
    operands = jax.device_put(inputs.arrays)
    names = [name for name in operands if name.endswith(("_pages", "_cache"))]
    stores = {name: operands.pop(name) for name in names}

    def program(stores: dict[str, jax.Array], operands: dict[str, jax.Array]) -> Any:
        for _ in range(_calls()):
            stores = dict(zip(names, append(**stores, **operands), strict=False))
        return stores

    step = jax.jit(program, donate_argnums=0)
    return reports, time_carried(step, stores, [operands], calls=_calls(), **_length()).ms


def _check_rope(case: RopeCase) -> Outcome:
    x, positions = case.inputs()
    report = check_rope(case, run_rope(case))

    def op(query: jax.Array, operands: dict[str, Any]) -> jax.Array:
        return jax_baracuda.apply_rope(query, **operands, **case.options)

    return [report], _time(op, {"query": x, "positions": positions})


def _check_int4(case: Int4Case) -> Outcome:
    x, raw = case.inputs()
    weight = raw.convert()
    out = jax.jit(jax_baracuda.int4_matmul)(x, weight)
    report = check_int4(case, x, raw, out)

    def op(query: jax.Array, operands: dict[str, Any]) -> jax.Array:
        return jax_baracuda.int4_matmul(query, operands["weight"])

    return [report], _time(op, {"query": x, "weight": weight})


def _check_attention(case: AttentionCase, *, gradients: bool) -> Outcome:
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, gradients=gradients)
    reports = check_attention(case, inputs, results)
    arrays = inputs.arrays()
    if gradients:
        arrays["dout"] = inputs.dout
        if inputs.dlse is not None:
            arrays["dlse"] = inputs.dlse
        call = gradient_function(case)
        return reports, _time(lambda query, o: call(query=query, **o)["dquery"], arrays)
    attend = attention_function(case, return_lse=False)
    return reports, _time(lambda query, o: attend(query=query, **o), arrays)


def _time(op: Callable[..., jax.Array], arrays: dict[str, Any]) -> float:
    """Milliseconds of ``op(query, the other operands)``, whose result is like the query."""
    operands = jax.device_put(arrays)
    query = operands.pop("query")
    return time_chained(op, query, [(operands,)], calls=_calls(), **_length()).ms


def _calls() -> int:
    """How many calls a program makes, to keep the host out of the time of one."""
    return 20 if jax.default_backend() == "gpu" else 1


def _length() -> dict[str, Any]:
    """How long a time is taken: nobody waits for that of the reference on a CPU."""
    if jax.default_backend() == "gpu":
        return {"seconds": 0.05, "samples": 3}
    return {"seconds": 0, "samples": 1}
