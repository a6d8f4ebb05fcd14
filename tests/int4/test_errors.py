"""What int4_matmul refuses, and how it says so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda import int4_awq_matmul, int4_matmul
from jax_baracuda.testing import int4

RAW = int4.make_raw_weight("packed", 128, 64, 64)
WEIGHT = RAW.convert()
X = np.ones((2, 128), np.float16)


def changed(**leaves):
    return dataclasses.replace(WEIGHT, **leaves)


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        (("x", WEIGHT), {}, "x is a str; it must be an array"),
        ((X, np.ones((128, 64))), {}, "weight is a ndarray; it must be a .*Int4Weight"),
        ((X[:, :64], WEIGHT), {}, r"x has shape \(2, 64\).*IC = 128"),
        ((np.float16(1), WEIGHT), {}, r"x has shape \(\)"),
        ((X, WEIGHT), dict(bias=np.ones(63)), r"bias has shape \(63,\); it must be \(64,\)"),
        ((X, WEIGHT), dict(bias=np.ones(64, int)), "bias has dtype int"),
        ((X, WEIGHT), dict(implementation="fast"), "implementation is 'fast'"),
        ((X, changed(packed=WEIGHT.packed[None])), {}, "weight.packed .*scan or jax.vmap"),
        ((X, changed(scales=WEIGHT.scales[:1])), {}, r"weight.scales has shape \(1, 64\)"),
        ((X, changed(zeros=WEIGHT.zeros[:, :32])), {}, r"weight.zeros has shape \(2, 32\)"),
        ((X, changed(order=np.arange(3))), {}, r"weight.order has shape \(3,\)"),
    ],
)
def test_wrong_values(args, options, match):
    with pytest.raises(ValueError, match=match):
        int4_matmul(*args, **options)


def test_unsupported_values():
    with pytest.raises(NotImplementedError, match="x has dtype int8; supported are float16"):
        int4_matmul(X.astype(np.int8), WEIGHT)
    with pytest.raises(
        NotImplementedError, match="x has dtype float32 and implementation is 'cuda'"
    ):
        int4_matmul(X.astype(np.float32), WEIGHT, implementation="cuda")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there the kernel runs")
def test_cuda_insists():
    with pytest.raises(NotImplementedError, match="int4_matmul: implementation is 'cuda'"):
        int4_matmul(X, WEIGHT, implementation="cuda")


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        (dict(activation=X[0]), {}, r"activation has shape \(128,\)"),
        (dict(activation=X[:, :64]), {}, r"activation has shape \(2, 64\) and weight_packed has"),
        (dict(scales=RAW.arrays["scales"][:1]), {}, r"scales has shape \(1, 64\)"),
        (dict(zeros=np.ones((2, 8))), {}, "zeros has shape .* and dtype float"),
        ({}, dict(group_size=40), "group_size is 40"),
        ({}, dict(split_k_iters=0), "split_k_iters is 0"),
        ({}, dict(split_k_iters=1.5), "split_k_iters is 1.5"),
    ],
)
def test_raw_operands(changes, options, match):
    operands = {"activation": X} | RAW.arrays | changes
    with pytest.raises(ValueError, match=match):
        int4_awq_matmul(*operands.values(), **{"group_size": 64} | options)


def test_nothing_is_checked_on_values():
    """So that everything traces: shapes are enough."""
    out = jax.eval_shape(int4_matmul, jax.ShapeDtypeStruct((3, 128), jnp.bfloat16), WEIGHT)
    assert (out.shape, out.dtype) == ((3, 64), jnp.bfloat16)
