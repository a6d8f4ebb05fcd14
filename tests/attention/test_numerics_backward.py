"""The gradients of flash_attention against the float64 oracle, and random cases of everything."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda.testing import (
    ATTENTION_CASES,
    AttentionCase,
    attention_oracle,
    check_attention,
    gradient_function,
    make_attention_inputs,
    reference_attention,
    run_attention,
)
from jax_baracuda.testing.attention_table import attention_cases

every_case = pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
# Every option and mix of options; sizes and dtypes are the kernel's business.
option_case = pytest.mark.parametrize(
    "case",
    [case for case in ATTENTION_CASES if case.name.startswith(("only", "mix", "varlen", "empty"))],
    ids=lambda case: case.name,
)


def check_types(inputs, results) -> None:
    """Every gradient has the shape and dtype of what it is the gradient of."""
    for name, result in results.items():
        if name.startswith("d"):
            operand = getattr(inputs, name.removeprefix("d"))
            assert (result.shape, result.dtype) == (operand.shape, operand.dtype), name


@option_case
def test_reference_lowering(case):
    """Float32 arithmetic inside: the exact gradients, rounded, but for float32's own error."""
    inputs = make_attention_inputs(case)
    oracle = attention_oracle(case, inputs, gradients=True)
    results = run_attention(case, inputs, gradients=True, implementation="reference")
    check_types(inputs, results)
    yardstick = {n: oracle.results[n].astype(array.dtype) for n, array in results.items()}
    for report in check_attention(case, inputs, results, oracle=oracle, reference=yardstick):
        report.check()


@pytest.mark.parametrize("name", ["mix-everything-float32", "varlen-everything-float32"])
def test_oracle_has_the_slope_of_its_value(name):
    """The oracle's gradients are those of its own value, by central differences."""
    case = next(case for case in ATTENTION_CASES if case.name == name)
    inputs = make_attention_inputs(case)
    rng = np.random.default_rng(0)
    exact = attention_oracle(case, inputs, gradients=True).results

    def objective(given) -> float:
        value = attention_oracle(case, given).results
        seen = np.isfinite(value["lse"])
        lse = np.where(seen, value["lse"], 0) * np.where(seen, inputs.dlse, 0)
        rows = np.isfinite(inputs.dout)
        return float((value["out"] * np.where(rows, inputs.dout, 0)).sum() + lse.sum())

    for operand in ("query", "key", "value", "bias", "sinks"):
        array = getattr(inputs, operand).astype(np.float64)
        step = 1e-5 * rng.standard_normal(array.shape)
        ahead, behind = (
            objective(dataclasses.replace(inputs, **{operand: array + sign * step}))
            for sign in (1, -1)
        )
        slope = float((exact[f"d{operand}"] * step).sum())
        np.testing.assert_allclose((ahead - behind) / 2, slope, rtol=1e-5, err_msg=operand)


# ---- the CUDA kernels


@pytest.mark.gpu
@every_case
def test_cuda(case):
    """Gradients and poison: what is hidden, its cotangent too, holds NaN and infinity."""
    check_cuda(case)


def check_cuda(case: AttentionCase) -> None:
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, gradients=True, implementation="cuda")
    check_types(inputs, results)
    for report in check_attention(case, inputs, results):
        report.check()


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_cuda_random_cases(seed):
    """Random shapes and mixes of options, value and gradients; a seed is another dozen halves."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=6,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=attention_cases())
    def check(case):
        check_cuda(case)

    check()


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
def test_cuda_offsets_past_2_31():
    """Arrays of more than 2^31 elements, forward and backward: the last rows are right."""
    needed = 60e9
    memory = jax.devices("cuda")[0].memory_stats()["bytes_limit"]
    if memory < needed:
        pytest.skip(f"needs {needed:.0f} bytes of GPU memory, jax may use {memory}")
    rows, tail, window = 265_000, 256, 63
    case = AttentionCase(
        "far",
        batch=1,
        query_length=tail,
        kv_heads=64,
        group=1,
        head_dim=128,
        is_causal=True,
        local_window_size=(window, 0),
        lse_cotangent=True,
    )
    assert rows * case.kv_heads * case.head_dim > 2**31
    inputs = make_attention_inputs(case)
    # All that the rows of the tail from `window` on see, and are seen by, lies in the tail.

    @jax.jit
    def last_rows(operands: dict[str, Any]) -> dict[str, Any]:
        def embed(name: str, array: jax.Array) -> jax.Array:
            axis = array.ndim - 1 if name == "dlse" else 1
            shape = list(array.shape)
            shape[axis] = rows
            far = jnp.full(shape, 0.5, array.dtype)
            return jax.lax.dynamic_update_slice_in_dim(far, array, rows - tail, axis)

        call = gradient_function(case, implementation="cuda")
        results = call(**{name: embed(name, array) for name, array in operands.items()})
        return {name: last(name, array) for name, array in results.items()}

    def last(name: str, array: Any) -> Any:
        if name == "lse":
            return array[..., -tail:][..., window:]
        return array[:, -tail:][:, window:]

    def of_last_rows(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: last(name, array) for name, array in results.items()}

    operands = inputs.arrays() | {"dout": inputs.dout, "dlse": inputs.dlse}
    results = jax.tree.map(np.asarray, last_rows(jax.device_put(operands)))
    oracle = attention_oracle(case, inputs, gradients=True)
    oracle = dataclasses.replace(oracle, results=of_last_rows(oracle.results))
    reference = of_last_rows(reference_attention(case, inputs, gradients=True))
    assert set(results) == set(oracle.results)
    for report in check_attention(case, inputs, results, oracle=oracle, reference=reference):
        report.check()
