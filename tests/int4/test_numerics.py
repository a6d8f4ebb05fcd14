"""int4_matmul against float64 on the exact weight: on this machine's CPU, and on its GPU."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_baracuda import int4_awq_matmul, int4_matmul
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4
from jax_baracuda.testing.int4 import BOUNDS, relative_error

ROWS = (1, 7, 8, 9, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 128, 129, 257)


def activations(*shape, dtype="float16", seed=0):
    draws = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jax.device_put(draws.astype(jnp.dtype(dtype)))


def exact(x, raw):
    return np.asarray(x).astype(np.float64) @ int4.read(raw)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 17, 33, 65, 257])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows(rows, dtype):
    raw = int4.make_raw_weight("awq_gemm", 256, 192, 64, dtype=dtype)
    x = activations(rows, 256, dtype=dtype)
    out = jax.jit(int4_matmul)(x, raw.convert())
    assert (out.shape, out.dtype) == ((rows, 192), x.dtype)
    assert relative_error(out, exact(x, raw)) < BOUNDS[dtype]


@pytest.mark.parametrize("format", int4.FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_formats(format, dtype):
    raw = int4.make_raw_weight(format, 264, 72, 96)
    x = activations(2, 3, 264, dtype=dtype)
    out = int4_matmul(x, raw.convert())
    assert (out.shape, out.dtype) == ((2, 3, 72), x.dtype)
    assert relative_error(out, exact(x, raw)) < BOUNDS[dtype]


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    rows=st.integers(0, 20),
    ic=st.integers(0, 200),
    oc=st.integers(0, 150),
    group=st.sampled_from([32, 64, 96, 128, -1]),
    biased=st.booleans(),
)
def test_shapes(rows, ic, oc, group, biased):
    """Channels of any number, which only ``quantize`` makes."""
    w = np.random.default_rng(ic).normal(size=(ic, oc)).astype(np.float16)
    weight = Int4Weight.quantize(w, group_size=group)
    x, bias = activations(rows, ic), activations(oc) if biased else None
    out = int4_matmul(x, weight, bias=bias)
    want = np.asarray(x, np.float64) @ np.asarray(weight.dequantize(), np.float64)
    want = want + (np.asarray(bias, np.float64) if biased else 0)
    assert out.shape == (rows, oc)
    np.testing.assert_allclose(out, want, rtol=2e-3, atol=2e-3)


def test_every_group_has_its_own_scale():
    """A group off by one channel would show: only one input channel at a time is not 0."""
    raw = int4.make_raw_weight("packed", 512, 64, 32)
    weight = raw.convert()
    out = int4_matmul(jnp.eye(512, dtype=jnp.float16), weight)
    np.testing.assert_array_equal(out, int4.read(raw).astype(np.float16))


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (3,), (1, 2, 3)])
def test_leading_dimensions(leading):
    raw = int4.make_raw_weight("awq_gemm", 128, 64)
    x = activations(*leading, 128)
    out = int4_matmul(x, raw.convert())
    assert out.shape == (*leading, 64)
    np.testing.assert_allclose(out, exact(x, raw), rtol=1e-2, atol=1e-2)


def test_bias_is_added_before_rounding():
    raw = int4.make_raw_weight("awq_gemm", 128, 64)
    x, bias = activations(5, 128), jnp.linspace(-1000, 1000, 64, dtype=jnp.float16)
    out = int4_matmul(x, raw.convert(), bias=bias)
    want = (exact(x, raw) + np.asarray(bias, np.float64)).astype(np.float16)
    assert np.mean(np.asarray(out) == want) > 0.99


def test_sums_are_in_float32():
    """1024 plus many halves: in 16 bits they would be lost."""
    x = jnp.concatenate([jnp.full((1, 1), 2048), jnp.full((1, 1023), 0.5)], 1).astype(jnp.float16)
    weight = Int4Weight.quantize(jnp.ones((1024, 64), jnp.float16), group_size=-1)
    scale = float(weight.dequantize()[0, 0])
    out = int4_matmul(x, weight)
    np.testing.assert_allclose(out, (2048 + 1023 / 2) * scale, rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(bad):
    """And the padding of both channels does not spread it."""
    raw = int4.make_raw_weight("awq_gemm", 200, 72, 64)
    weight = raw.convert()
    x = np.array(activations(9, 200))
    clean = np.asarray(int4_matmul(jnp.asarray(x), weight))
    x[4, 199] = bad
    out = np.asarray(int4_matmul(jnp.asarray(x), weight))
    assert not np.isfinite(out[4]).all()
    rest = np.arange(9) != 4
    np.testing.assert_array_equal(out[rest], clean[rest])
    if np.isinf(bad):  # a weight of 0 times infinity is NaN; all others say which infinity
        row = int4.read(raw)[199]
        np.testing.assert_array_equal(out[4][row > 0], bad)
        np.testing.assert_array_equal(out[4][row < 0], -bad)


def test_scales_of_another_dtype_are_converted():
    raw = int4.make_raw_weight("awq_gemm", 128, 64, dtype="float16")
    weight, x = raw.convert(), activations(4, 128, dtype="bfloat16")
    out = int4_matmul(x, weight)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, int4_matmul(x, weight.astype(jnp.bfloat16)))
    assert relative_error(out, exact(x, raw)) < 2 * BOUNDS["bfloat16"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("split_k_iters", [1, 8])
def test_raw_operands(dtype, split_k_iters):
    raw = int4.make_raw_weight("packed", 256, 64, 64)
    x = activations(5, 256, dtype=dtype)
    out = jax.jit(lambda *args: int4_awq_matmul(*args, group_size=64, split_k_iters=split_k_iters))(
        x, *raw.arrays.values()
    )
    np.testing.assert_array_equal(out, jax.jit(int4_matmul)(x, raw.convert()))


# ---- the kernels

LAYERS = [(256, 192, 64), (4096, 512, 128), (1024, 200, 32), (712, 136, -1), (960, 64, 96)]
WHOLE = [(4096, 4096), (4096, 14336), (14336, 4096)]  # the heuristics take other tiles and splits


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("ic", "oc", "group"), LAYERS)
def test_kernels(ic, oc, group, dtype):
    raw = int4.make_raw_weight("awq_gemm", ic, oc, group, dtype=dtype)
    weight = raw.convert()
    product = jax.jit(lambda x, w: int4_matmul(x, w, implementation="cuda"))
    for rows in ROWS:
        x = activations(rows, ic, dtype=dtype)
        out = product(x, weight)
        assert relative_error(out, exact(x, raw)) < BOUNDS[dtype], rows
        np.testing.assert_array_equal(out, product(x, weight))  # deterministic


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize(("ic", "oc"), WHOLE)
def test_kernels_of_whole_layers(ic, oc):
    raw = int4.make_raw_weight("awq_gemm", ic, oc, 128)
    weight, matrix = raw.convert(), int4.read(raw)
    product = jax.jit(lambda x, w: int4_matmul(x, w, implementation="cuda"))
    for rows in (8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256):
        x = np.array(activations(rows, ic))
        x[rows // 2, 5] = np.nan
        out = np.asarray(product(x, weight))
        rest = np.arange(rows) != rows // 2
        assert np.isnan(out[rows // 2]).all()
        want = x[rest].astype(np.float64) @ matrix
        assert relative_error(out[rest], want) < BOUNDS["float16"], rows
        x = jax.device_put(x)
        for _ in range(20):  # a race would show sooner or later
            np.testing.assert_array_equal(out, product(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_kernels_add_a_bias_and_keep_nan_in_its_row(group):
    raw = int4.make_raw_weight("gptq_act_order", 456, 136, group)
    weight, bias = raw.convert(), activations(136)
    product = jax.jit(functools.partial(int4_matmul, implementation="cuda"))
    for rows in (1, 9, 17, 33, 40, 65, 127, 300):
        x = np.array(activations(rows, 456))
        clean = np.asarray(product(x, weight, bias=bias))
        want = exact(x, raw) + np.asarray(bias, np.float64)
        assert relative_error(clean, want) < BOUNDS["float16"], rows
        x[rows // 2, 455] = np.nan
        out = np.asarray(product(x, weight, bias=bias))
        assert np.isnan(out[rows // 2]).all()
        rest = np.arange(rows) != rows // 2
        np.testing.assert_array_equal(out[rest], clean[rest])


@pytest.mark.gpu
def test_kernels_without_rows_or_channels():
    weight = int4.make_raw_weight("awq_gemm", 128, 64).convert()
    assert int4_matmul(activations(0, 128), weight).shape == (0, 64)
    empty = Int4Weight.quantize(jnp.zeros((0, 64), jnp.float16))
    bias = activations(64)
    out = int4_matmul(activations(3, 0), empty, bias=bias)
    np.testing.assert_array_equal(out, jnp.broadcast_to(bias, (3, 64)))
    empty = Int4Weight.quantize(jnp.zeros((64, 0), jnp.float16))
    assert int4_matmul(activations(3, 64), empty).shape == (3, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("zero", [0, 15, 16])
def test_kernels_with_extreme_zero_points(zero):
    raw = int4.make_raw_weight("gptq_v1", 256, 64)
    weight = raw.convert()
    weight = dataclasses.replace(weight, zeros=jnp.full_like(weight.zeros, zero))
    matrix = np.asarray(weight.dequantize(), np.float64)
    for rows in (1, 8, 9, 16, 32, 64, 128, 300):
        x = activations(rows, 256)
        out = int4_matmul(x, weight, implementation="cuda")
        assert relative_error(out, np.asarray(x, np.float64) @ matrix) < BOUNDS["float16"]
