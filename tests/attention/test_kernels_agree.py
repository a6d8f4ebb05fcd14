"""The kernel of one architecture and the portable one give the same results."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda._src.attention import primitive, shapes

Q_HEADS, KV_HEADS = 4, 2


def call(
    operands: dict[str, jax.Array],
    *,
    portable: bool,
    kind: shapes.Pass = "forward",
    **options: object,
) -> list[jax.Array]:
    static = shapes.check_options(operands["query"].shape[-1], **options)
    missing = jnp.zeros((0,), jnp.float32)
    arrays = [operands.get(name, missing) for name in shapes.OPERANDS[kind]]
    function = functools.partial(primitive.kernel_call, kind, portable=portable, **static)
    return jax.jit(function)(*arrays)


def make(rows: int, keys: int, dim: int, value_dim: int, dtype: str) -> dict[str, jax.Array]:
    draws = jax.random.split(jax.random.key(rows * keys + dim), 3)
    sizes = ((2, rows, Q_HEADS, dim), (2, keys, KV_HEADS, dim), (2, keys, KV_HEADS, value_dim))
    names = ("query", "key", "value")
    return {
        name: jax.random.normal(draw, size, dtype)
        for name, draw, size in zip(names, draws, sizes, strict=True)
    }


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "dims", [(64, 64), (40, 24), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)], ids=str
)
@pytest.mark.parametrize("sizes", [(1, 1), (799, 1023), (1023, 700), (2100, 4200)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, dict(is_causal=True), dict(is_causal=True, local_window_size=150, sink_tokens=5)],
    ids=["full", "causal", "window"],
)
def test_both_kernels_agree(dtype, dims, sizes, options):
    operands = make(*sizes, *dims, dtype)
    operands["kv_lengths"] = jnp.array([sizes[1], sizes[1] // 3], jnp.int32)
    operands["sinks"] = jnp.linspace(-1, 1, Q_HEADS, dtype=jnp.float32)[None]
    out, lse = call(operands, portable=False, **options)
    wanted, wanted_lse = call(operands, portable=True, **options)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-3, rtol=1e-5)
    error = jnp.linalg.norm(out.astype(jnp.float32) - wanted.astype(jnp.float32))
    norm = jnp.linalg.norm(wanted.astype(jnp.float32))
    assert float(error) <= 5e-3 * float(norm)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dims", [(64, 64), (40, 24), (96, 96), (128, 128)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (799, 1023), (1023, 700), (2100, 4200)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, dict(is_causal=True), dict(is_causal=True, local_window_size=150, sink_tokens=5)],
    ids=["full", "causal", "window"],
)
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_both_backward_kernels_agree(dtype, dims, sizes, options, deterministic):
    operands = make(*sizes, *dims, dtype)
    operands["kv_lengths"] = jnp.array([sizes[1], sizes[1] // 3], jnp.int32)
    out, lse = call(operands, portable=True, **options)
    operands |= {"out": out, "lse": lse, "dout": jnp.flip(out, 1), "dlse": jnp.sin(lse)}
    operands["dlse"] = jnp.where(jnp.isfinite(lse), operands["dlse"], 0.0)
    got, again, wanted = (
        call(operands, portable=portable, kind="backward", deterministic=deterministic, **options)
        for portable in (False, False, True)
    )
    for x, y in zip(got, wanted, strict=True):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        assert float(jnp.linalg.norm(x - y)) <= 1e-2 * float(jnp.linalg.norm(y)) + 1e-6
    repeated = slice(0 if deterministic else 1, None)
    for x, y in zip(got[repeated], again[repeated], strict=True):
        np.testing.assert_array_equal(x, y)
