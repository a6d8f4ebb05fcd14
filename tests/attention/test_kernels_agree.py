"""The kernel of one architecture and the portable one give the same results."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda._src.attention import primitive, shapes

Q_HEADS, KV_HEADS = 4, 2
# The tiles of the backward kernel for Hopper GPUs, and head dims that fill a part of one.
TILES = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]
BACKWARD_DIMS = [*TILES, (40, 24), (136, 72), (96, 160), (200, 232)]


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
    return compiled(kind, portable, **static)(*arrays)


@functools.cache
def compiled(kind: shapes.Pass, portable: bool, **static: object) -> Callable[..., list[jax.Array]]:
    return jax.jit(functools.partial(primitive.kernel_call, kind, portable=portable, **static))


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


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "dims"),
    [("float16", dims) for dims in TILES] + [("bfloat16", dims) for dims in BACKWARD_DIMS],
    ids=str,
)
@pytest.mark.parametrize("sizes", [(1, 1), (799, 1023), (2100, 1500)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, dict(is_causal=True), dict(is_causal=True, local_window_size=150, sink_tokens=5)],
    ids=["full", "causal", "window"],
)
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_both_backward_kernels_agree(dtype, dims, sizes, options, deterministic):
    operands = make(*sizes, *dims, dtype)
    operands["kv_lengths"] = jnp.array([sizes[1], sizes[1] // 3], jnp.int32)
    agree(operands, deterministic=deterministic, **options)


def poison(array: jax.Array, lengths: list[int]) -> jax.Array:
    """NaN in the rows past each sequence's length."""
    rows = jnp.arange(array.shape[1])[None, :, None, None]
    return jnp.where(rows < jnp.array(lengths)[:, None, None, None], array, jnp.nan)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
@pytest.mark.parametrize("lengths", [((500, 130), (77, 600)), ((64, 0), (0, 64))], ids=str)
def test_both_backward_kernels_agree_beside_padding(dims, causal, deterministic, lengths):
    operands = make(500, 600, *dims, "bfloat16")
    for name, length in zip(("query", "key", "value"), (*lengths, lengths[1]), strict=True):
        operands[name] = poison(operands[name], length)
    operands["query_lengths"], operands["kv_lengths"] = (jnp.array(x, jnp.int32) for x in lengths)
    agree(operands, is_causal=causal, deterministic=deterministic, dout_length=lengths[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("length", [37, 170])
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_both_backward_kernels_agree_on_segments(dims, length, deterministic):
    operands = make(900, 900, *dims, "bfloat16")
    ids = (jnp.arange(900)[None] + jnp.array([[0], [21]])) // length
    operands |= {"query_segment_ids": ids, "kv_segment_ids": ids}
    agree(operands, is_causal=True, deterministic=deterministic)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_both_backward_kernels_agree_on_packed_sequences(dims, causal, deterministic):
    bounds = jnp.array([[0, 100, 100, 577, 1101], [0, 300, 310, 700, 1111]], jnp.int32)
    operands = make(1200, 1300, *dims, "bfloat16")
    operands = {name: array[:1] for name, array in operands.items()}
    operands["query"] = poison(operands["query"], [1101])
    operands["key"], operands["value"] = (poison(operands[x], [1111]) for x in ("key", "value"))
    operands |= {"cu_seqlens_q": bounds[:1], "cu_seqlens_k": bounds[1:]}
    # The last sequence is longer than is said.
    options = dict(max_seqlen_q=500, max_seqlen_k=401, is_causal=causal)
    agree(operands, deterministic=deterministic, dout_length=[1101], **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", TILES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_the_order_of_sums_is_kept(dims, causal):
    """Deterministic calls repeat bit for bit while many blocks of keys add to the same rows."""
    operands = make(2048, 2048, *dims, "bfloat16")
    operands = {name: jnp.tile(array, (2, 1, 2, 1)) for name, array in operands.items()}
    out, lse = call(operands, portable=True, is_causal=causal)
    operands |= {"out": out, "lse": lse, "dout": jnp.flip(out, 1)}
    options = dict(portable=False, kind="backward", is_causal=causal)
    first = call(operands, deterministic=True, **options)
    for _ in range(50):
        for x, y in zip(first, call(operands, deterministic=True, **options), strict=True):
            np.testing.assert_array_equal(x, y)
    for x, y in zip(first, call(operands, **options), strict=True):
        np.testing.assert_array_less(distance(x, y), 2e-3)


FEATURES = {
    "soft_cap": {"logits_soft_cap": 3.0},
    "alibi": {"alibi_slopes": (1, Q_HEADS)},
    "bias": {"bias": (2, Q_HEADS, 799, 1023)},
    "mask": {"bias": (1, 1, 799, 1023), "mask": True},
    "dropout": {"dropout_rate": 0.2},
    "scale": {"scale": -0.1},
    "all": {
        "logits_soft_cap": 5.0,
        "alibi_slopes": (1, Q_HEADS),
        "bias": (2, 1, 1, 1023),
        "dropout_rate": 0.1,
        "local_window_size": 300,
        "sink_tokens": 3,
    },
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "dims"),
    [("bfloat16", (64, 64)), ("float16", (40, 24)), ("bfloat16", (128, 128))],
    ids=str,
)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_both_backward_kernels_agree_on_features(dtype, dims, feature, causal, deterministic):
    options = dict(FEATURES[feature])
    operands = make(799, 1023, *dims, dtype)
    draw = jax.random.key(1)
    if "alibi_slopes" in options:
        operands["alibi_slopes"] = jax.random.uniform(draw, options.pop("alibi_slopes"), maxval=0.1)
    if "bias" in options:
        bias = jax.random.normal(draw, options.pop("bias"), dtype)
        operands["bias"] = bias > -1 if options.pop("mask", False) else bias
    if "dropout_rate" in options:
        seed = jnp.array([3, 4], jnp.uint32)
        head, batch = jnp.meshgrid(jnp.arange(Q_HEADS), jnp.arange(2))
        parts = [jnp.broadcast_to(x, (2, Q_HEADS)) for x in (*seed, head, batch)]
        operands["dropout_seed"] = jnp.stack(parts, -1).astype(jnp.uint32)
    operands["kv_lengths"] = jnp.array([1023, 400], jnp.int32)
    agree(operands, is_causal=causal, deterministic=deterministic, **options)


def distance(x: jax.Array, y: jax.Array) -> float:
    """Of the arrays, relative to the second."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return float(jnp.linalg.norm(x - y)) / (float(jnp.linalg.norm(y)) + 1e-6)


def agree(operands, *, deterministic, dout_length=None, **options):
    """Both kernels have the same gradients of the operands, and what is to repeat repeats."""
    out, lse = call(operands, portable=True, **options)
    dout = jax.random.normal(jax.random.key(out.size), out.shape, out.dtype)
    if dout_length is not None:
        dout = poison(dout, dout_length)
    operands |= {"out": out, "lse": lse, "dout": dout}
    operands["dlse"] = jnp.where(jnp.isfinite(lse), jnp.sin(lse), 0.0)
    got, again, wanted = (
        call(operands, portable=portable, kind="backward", deterministic=deterministic, **options)
        for portable in (False, False, True)
    )
    for x, y in zip(got, wanted, strict=True):
        assert distance(x, y) <= 1e-2
    repeated = slice(0 if deterministic else 1, None)
    for x, y in zip(got[repeated], again[repeated], strict=True):
        np.testing.assert_array_equal(x, y)
