"""The kernel of one architecture and the portable one give the same results."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda._src.attention import primitive, shapes

Q_HEADS, KV_HEADS = 4, 2


def call(operands: dict[str, jax.Array], *, portable: bool, **options: object) -> list[jax.Array]:
    static = shapes.check_options(operands["query"].shape[-1], **options)
    missing = jnp.zeros((0,), jnp.float32)
    arrays = [operands.get(name, missing) for name in shapes.OPERANDS["forward"]]
    function = functools.partial(primitive.kernel_call, "forward", portable=portable, **static)
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
    check(operands, **options)


def check(operands: dict[str, jax.Array], **options: object) -> None:
    out, lse = call(operands, portable=False, **options)
    wanted, wanted_lse = call(operands, portable=True, **options)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-3, rtol=1e-5)
    error = jnp.linalg.norm(out.astype(jnp.float32) - wanted.astype(jnp.float32))
    norm = jnp.linalg.norm(wanted.astype(jnp.float32))
    assert float(error) <= 5e-3 * float(norm)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", [(64, 64), (96, 96), (128, 128), (192, 192), (256, 256)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (799, 1023), (300, 200)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature", ["soft cap", "slopes", "bias", "mask", "dropout", "all"])
def test_both_kernels_agree_on_modified_scores(dims, sizes, causal, feature):
    rows, keys = sizes
    operands = make(*sizes, *dims, "bfloat16")
    options: dict[str, object] = dict(is_causal=causal)
    if feature in ("soft cap", "all"):
        options["logits_soft_cap"] = 2.0
    if feature in ("slopes", "all"):
        operands["alibi_slopes"] = jnp.linspace(0, 0.1, Q_HEADS, dtype=jnp.float32)[None]
    if feature in ("bias", "all"):
        draw = jax.random.key(7)
        operands["bias"] = jax.random.normal(draw, (2, 1, rows, keys), jnp.float32)
    if feature == "mask":
        operands["bias"] = jax.random.bernoulli(jax.random.key(8), 0.5, (1, Q_HEADS, 1, keys))
    if feature in ("dropout", "all"):
        options["dropout_rate"] = 0.25
        places = jnp.stack(jnp.meshgrid(jnp.arange(Q_HEADS), jnp.arange(2)), axis=-1)
        seed = jnp.broadcast_to(jnp.array([3, 5]), (2, Q_HEADS, 2))
        operands["dropout_seed"] = jnp.concatenate([seed, places], axis=-1).astype(jnp.uint32)
    check(operands, **options)
