"""flash_attention against the float64 oracle: on this machine's CPU, and through the kernel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda.testing import (
    ATTENTION_CASES,
    AttentionCase,
    attention_function,
    attention_oracle,
    check_attention,
    make_attention_inputs,
    reference_attention,
    run_attention,
)
from jax_baracuda.testing.attention_oracle import philox4x32

every_case = pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
# The sizes that a CPU computes in no time; test_numerics_backward.py has the options.
size_case = pytest.mark.parametrize(
    "case",
    [
        case
        for case in ATTENTION_CASES
        if case.query_length * case.keys < 300_000
        and not case.name.startswith(("only", "mix", "varlen", "empty"))
    ],
    ids=lambda case: case.name,
)


def named(name: str) -> AttentionCase:
    return next(case for case in ATTENTION_CASES if case.name == name)


def rounded(oracle, results) -> dict[str, np.ndarray]:
    """The best that the dtypes of the results can hold: the yardstick of float32 arithmetic."""
    return {name: oracle.results[name].astype(array.dtype) for name, array in results.items()}


def check_types(case: AttentionCase, results) -> None:
    assert results["out"].dtype == case.numpy_dtype
    assert results["lse"].dtype == np.float32


# ---- the reference, which is what runs without a GPU, and the oracle


@size_case
def test_reference_lowering(case):
    """Float32 arithmetic inside: the exact result, rounded, but for float32's own error."""
    inputs = make_attention_inputs(case)
    oracle = attention_oracle(case, inputs)
    results = run_attention(case, inputs, implementation="reference")
    check_types(case, results)
    yardstick = rounded(oracle, results)
    for report in check_attention(case, inputs, results, oracle=oracle, reference=yardstick):
        report.check()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_same_precision_reference(dtype):
    """The yardstick of the GPU tests is itself near the oracle: a few roundings of the dtype."""
    case = dataclasses.replace(named("only-causal"), dtype=dtype)
    inputs = make_attention_inputs(case)
    oracle = attention_oracle(case, inputs)
    results = reference_attention(case, inputs)
    error = np.abs(results["out"].astype(np.float64) - oracle.results["out"]).max()
    size = np.abs(oracle.results["out"]).max()
    assert 0 < error < 4 * float(jnp.finfo(dtype).eps) * size
    assert np.abs(results["lse"] - oracle.results["lse"]).max() < 1e-4


@pytest.mark.parametrize("name", ["mix-everything-float32", "varlen-everything-float32"])
def test_float64_reference_is_an_oracle(name):
    """Under enable_x64 the jnp reference agrees with the numpy oracle to float64's precision."""
    case = named(name)
    inputs = make_attention_inputs(case)
    oracle = attention_oracle(case, inputs, gradients=True)

    def wide(array):
        return array.astype(np.float64) if array is not None and array.dtype.kind == "f" else array

    fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    with jax.enable_x64(True):
        results = reference_attention(
            dataclasses.replace(case, dtype="float64"),
            dataclasses.replace(inputs, **{name: wide(array) for name, array in fields.items()}),
            gradients=True,
        )
    assert set(results) == set(oracle.results)
    for name, result in results.items():
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, oracle.results[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("word", "rounds", "expected"),
    [
        (0, 7, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (0xFFFFFFFF, 7, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (0, 10, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (0xFFFFFFFF, 10, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_known_answers(word, rounds, expected):
    """The known answers of the Random123 library, which the paper's authors published."""
    words = philox4x32([np.uint32(word)] * 4, (word, word), rounds)
    assert " ".join(f"{int(w):08x}" for w in words) == expected


# ---- the CUDA kernel


@pytest.mark.gpu
@every_case
def test_cuda(case):
    """Value, log-sum-exp and poison: what is hidden holds NaN and infinity in every case."""
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, implementation="cuda")
    check_types(case, results)
    for report in check_attention(case, inputs, results):
        report.check()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["only-causal", "varlen-causal-float16"])
def test_cuda_only_output(name):
    """Without return_lse the output is the same, bit for bit."""
    case = named(name)
    inputs = make_attention_inputs(case)
    out = run_attention(case, inputs, implementation="cuda")["out"]
    call = attention_function(case, implementation="cuda", return_lse=False)
    alone = np.asarray(call(**jax.device_put(inputs.arrays())))
    np.testing.assert_array_equal(bits(alone), bits(out))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_cuda_batch_invariance(dtype):
    """A sequence gives the same bits alone as in a batch, dense and packed."""
    lengths = (0, 1, 70, 129, 200)
    options = {"is_causal": True, "sinks": True, "local_window_size": (90, 0), "dtype": dtype}
    dense = AttentionCase(
        "invariance",
        batch=5,
        query_length=200,
        query_lengths=lengths,
        kv_lengths=lengths,
        **options,
    )
    ends = tuple(np.cumsum((0, *lengths)).tolist())
    packed = AttentionCase(
        "invariance",
        query_length=400,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlens=(200, 200),
        **options,
    )
    for case in (dense, packed):
        inputs = make_attention_inputs(case)
        together = run_attention(case, inputs, implementation="cuda")
        for n in range(len(lengths)):
            rows = slice(ends[n], ends[n + 1]) if case.varlen else slice(n, n + 1)
            by_row = {name: getattr(inputs, name)[rows] for name in ("query", "key", "value")}
            if case.varlen:
                alone = {"query_length": lengths[n], "cu_seqlens_q": (0, lengths[n])}
                alone["cu_seqlens_k"] = alone["cu_seqlens_q"]
                by_row |= {name: np.asarray((0, lengths[n]), np.int32) for name in list(alone)[1:]}
                expected = {"out": together["out"][rows], "lse": together["lse"][:, rows]}
            else:
                alone = {"batch": 1, "query_lengths": lengths[n : n + 1]}
                alone["kv_lengths"] = alone["query_lengths"]
                length = np.asarray(lengths[n : n + 1], np.int32)
                by_row |= {"query_seq_lengths": length, "key_value_seq_lengths": length}
                expected = {name: array[rows] for name, array in together.items()}
            one = dataclasses.replace(case, **alone)
            results = run_attention(
                one, dataclasses.replace(inputs, **by_row), implementation="cuda"
            )
            for name, array in expected.items():
                np.testing.assert_array_equal(bits(results[name]), bits(array))


def bits(array: np.ndarray) -> np.ndarray:
    """The bit patterns, so that comparing is exact and -0 differs from 0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@pytest.mark.gpu
def test_cuda_counts_every_key():
    """300000 keys of one head: with equal keys the log-sum-exp counts them all."""
    keys = 300_000
    case = AttentionCase("long", head_dim=64)
    out, lse = attention_function(case, implementation="cuda")(
        jnp.ones((1, 200, 2, 64), jnp.bfloat16),
        jnp.zeros((1, keys, 1, 64), jnp.bfloat16),
        jnp.ones((1, keys, 1, 64), jnp.bfloat16),
    )
    np.testing.assert_allclose(np.asarray(lse), np.log(keys), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, rtol=2**-8)
