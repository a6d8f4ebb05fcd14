"""The kernel of one architecture and the portable one give the same results.

Inputs are drawn, and results compared, on the host: on the device XLA would compile something for
every shape, which takes longer than the kernels do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda._src.attention import primitive, shapes
from jax_baracuda.testing.calls import count_differences

Q_HEADS, KV_HEADS = 4, 2
# The tiles of the backward kernel for Hopper GPUs, and head dims that fill a part of one.
TILES = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]
BACKWARD_DIMS = [*TILES, (40, 24), (136, 72), (96, 160), (200, 232)]

Operands = dict[str, np.ndarray]
Results = list[np.ndarray]
# What sets calls of one program apart.
Variant = dict[str, bool]
OURS, PORTABLE = {"portable": False}, {"portable": True}


def prepare(
    operands: Operands, *variants: Variant, kind: shapes.Pass = "forward", **options: object
) -> tuple[Callable[..., list[Sequence[jax.Array]]], list[jax.Array]]:
    """One program of all variants of a call, and what it takes."""
    static = shapes.check_options(operands["query"].shape[-1], **options)
    missing = np.zeros((0,), np.float32)
    arrays = [operands.get(name, missing) for name in shapes.OPERANDS[kind]]
    program = compiled(kind, tuple(tuple(variant.items()) for variant in variants), **static)
    return program, jax.device_put(arrays)


@functools.cache
def compiled(
    kind: shapes.Pass, variants: tuple[tuple[tuple[str, bool], ...], ...], **static: object
) -> Callable[..., list[Sequence[jax.Array]]]:
    def run(*arrays: jax.Array) -> list[Sequence[jax.Array]]:
        calls = [static | dict(variant) for variant in variants]
        return [primitive.kernel_call(kind, *arrays, **options) for options in calls]

    return jax.jit(run)


def call(operands: Operands, *variants: Variant, **options: object) -> list[Results]:
    """The results of each variant."""
    program, arrays = prepare(operands, *variants, **options)
    return on_host(program(*arrays))


def on_host(results: list[Sequence[jax.Array]]) -> list[Results]:
    return [[np.asarray(array) for array in variant] for variant in results]


def normal(shape: Sequence[int], dtype: str, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)
    return draws.astype(jnp.dtype(dtype))


def make(rows: int, keys: int, dim: int, value_dim: int, dtype: str) -> Operands:
    return {
        "query": normal((2, rows, Q_HEADS, dim), dtype, 1),
        "key": normal((2, keys, KV_HEADS, dim), dtype, 2),
        "value": normal((2, keys, KV_HEADS, value_dim), dtype, 3),
    }


def seeds() -> np.ndarray:
    """Of dropout: two words for all, the head and the sequence, [B, Hq, 4]."""
    words = np.zeros((2, Q_HEADS, 4), np.uint32)
    words[..., :2] = 3, 5
    words[..., 2], words[..., 3] = np.arange(Q_HEADS), np.arange(2)[:, None]
    return words


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


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
    operands["kv_lengths"] = lengths(sizes[1], sizes[1] // 3)
    operands["sinks"] = np.linspace(-1, 1, Q_HEADS, dtype=np.float32)[None]
    check(operands, **options)


def check(operands: Operands, **options: object) -> None:
    (out, lse), (wanted, wanted_lse) = call(operands, OURS, PORTABLE, **options)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-3, rtol=1e-5)
    assert distance(out, wanted) <= 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("dims", [(64, 64), (96, 96), (128, 128), (192, 192), (256, 256)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (799, 1023), (300, 200)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "feature",
    [
        *("soft cap", "steep soft cap", "flat soft cap", "wide soft cap", "slopes", "mask"),
        *("bias", "half bias", "own bias", "hiding bias"),
        *("row bias", "half row bias", "dropout", "steep dropout", "all"),
    ],
)
def test_both_kernels_agree_on_modified_scores(dims, sizes, causal, feature):
    rows, keys = sizes
    operands = make(*sizes, *dims, "bfloat16")
    options: dict[str, object] = dict(is_causal=causal)
    if feature in ("soft cap", "all"):
        options["logits_soft_cap"] = 2.0
    if feature == "steep soft cap":  # scores beyond what a polynomial serves, beside others
        options["logits_soft_cap"] = 0.5
    if feature == "flat soft cap":  # all scores are such
        options["logits_soft_cap"] = 20.0
    if feature == "wide soft cap":  # weights need maxima
        options["logits_soft_cap"] = 80.0
    if feature in ("slopes", "all"):
        operands["alibi_slopes"] = np.linspace(0, 0.1, Q_HEADS, dtype=np.float32)[None]
    if feature in ("bias", "all"):
        operands["bias"] = normal((2, 1, rows, keys), "float32", 7)
    if feature == "half bias":
        operands["bias"] = normal((1, Q_HEADS, rows, keys), "float16", 7)
    if feature in ("own bias", "hiding bias"):
        operands["bias"] = normal((1, Q_HEADS, rows, keys), "bfloat16", 7)
    if feature == "hiding bias":  # some keys, all of a row, all of a column
        hidden = normal((1, Q_HEADS, rows, keys), "float32", 8) > 1
        hidden[:, :, rows // 2] = hidden[..., keys // 2] = True
        operands["bias"][hidden] = -np.inf
    if feature == "mask":
        operands["bias"] = normal((1, Q_HEADS, 1, keys), "float32", 8) > 0
    if feature == "row bias":
        operands["bias"] = normal((2, Q_HEADS, 1, keys), "float32", 9)
    if feature == "half row bias":
        operands["bias"] = normal((2, 1, 1, keys), "float16", 9)
    if "dropout" in feature or feature == "all":
        options["dropout_rate"] = 0.98 if feature == "steep dropout" else 0.25
        operands["dropout_seed"] = seeds()
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
def test_both_backward_kernels_agree(dtype, dims, sizes, options):
    operands = make(*sizes, *dims, dtype)
    operands["kv_lengths"] = lengths(sizes[1], sizes[1] // 3)
    agree(operands, **options)


def poison(array: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """NaN in the rows past each sequence's length."""
    array = array.copy()
    for sequence, end in zip(array, ends, strict=True):
        sequence[end:] = np.nan
    return array


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("ends", [((500, 130), (77, 600)), ((64, 0), (0, 64))], ids=str)
def test_both_backward_kernels_agree_beside_padding(dims, causal, ends):
    operands = make(500, 600, *dims, "bfloat16")
    for name, end in zip(("query", "key", "value"), (*ends, ends[1]), strict=True):
        operands[name] = poison(operands[name], end)
    operands["query_lengths"], operands["kv_lengths"] = (lengths(*x) for x in ends)
    agree(operands, is_causal=causal, dout_ends=ends[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("length", [37, 170])
def test_both_backward_kernels_agree_on_segments(dims, length):
    operands = make(900, 900, *dims, "bfloat16")
    ids = ((np.arange(900)[None] + np.array([[0], [21]])) // length).astype(np.int32)
    operands |= {"query_segment_ids": ids, "kv_segment_ids": ids}
    agree(operands, is_causal=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", BACKWARD_DIMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_both_backward_kernels_agree_on_packed_sequences(dims, causal):
    operands = {name: array[:1] for name, array in make(1200, 1300, *dims, "bfloat16").items()}
    operands["query"] = poison(operands["query"], [1101])
    operands["key"], operands["value"] = (poison(operands[x], [1111]) for x in ("key", "value"))
    operands["cu_seqlens_q"] = lengths(0, 100, 100, 577, 1101)[None]
    operands["cu_seqlens_k"] = lengths(0, 300, 310, 700, 1111)[None]
    # The last sequence is longer than is said.
    options = dict(max_seqlen_q=500, max_seqlen_k=401, is_causal=causal)
    agree(operands, dout_ends=[1101], **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dims", TILES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_the_order_of_sums_is_kept(dims, causal):
    """Deterministic calls repeat bit for bit while many blocks of keys add to the same rows."""
    operands = make(2048, 2048, *dims, "bfloat16")
    operands = {name: np.tile(array, (2, 1, 2, 1)) for name, array in operands.items()}
    ((out, lse),) = call(operands, PORTABLE, is_causal=causal)
    operands |= {"out": out, "lse": lse, "dout": out[:, ::-1]}
    options = dict(kind="backward", is_causal=causal)
    deterministic = OURS | {"deterministic": True}
    ordered, free = call(operands, deterministic, OURS, **options)
    # At 128 they are two kernels: the free one takes dS from the weights as it has rounded them.
    tolerance = 5e-3 if dims == (128, 128) else 2e-3
    for x, y in zip(ordered, free, strict=True):
        assert distance(x, y) < tolerance
    program, arrays = prepare(operands, deterministic, **options)
    assert count_differences(lambda given: program(*given), arrays, 50) == 0


def make_many(dim: int, value_dim: int, dtype: str) -> Operands:
    """With 132 multiprocessors and no mask, CTAs share the last blocks of keys by query rows."""
    operands = make(1000, 1020, dim, value_dim, dtype)
    return {name: np.tile(array, (1, 1, 17, 1)) for name, array in operands.items()}


divided_dims = pytest.mark.parametrize("dims", [(64, 64), (40, 24), (96, 96), (128, 128)], ids=str)


@pytest.mark.gpu
@divided_dims
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_both_backward_kernels_agree_on_divided_tiles(dtype, dims):
    agree(make_many(*dims, dtype))


@pytest.mark.gpu
@divided_dims
@pytest.mark.parametrize("feature", ["soft cap", "slopes", "row bias", "half bias", "dropout"])
def test_both_backward_kernels_agree_on_features_of_divided_tiles(dims, feature):
    operands = make_many(*dims, "bfloat16")
    options: dict[str, object] = {}
    if feature == "soft cap":
        options["logits_soft_cap"] = 3.0
    if feature == "slopes":
        operands["alibi_slopes"] = np.linspace(0, 0.1, 17 * Q_HEADS, dtype=np.float32)[None]
    if feature == "row bias":
        operands["bias"] = normal((2, 1, 1, 1020), "float32", 9)
    if feature == "half bias":
        operands["bias"] = normal((1, 1, 1000, 1020), "bfloat16", 7)
    if feature == "dropout":
        options["dropout_rate"] = 0.25
        operands["dropout_seed"] = np.tile(seeds(), (1, 17, 1))
    agree(operands, **options)


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
def test_both_backward_kernels_agree_on_features(dtype, dims, feature, causal):
    options = dict(FEATURES[feature])
    operands = make(799, 1023, *dims, dtype)
    if "alibi_slopes" in options:
        shape = options.pop("alibi_slopes")
        operands["alibi_slopes"] = np.random.default_rng(1).uniform(0, 0.1, shape)
        operands["alibi_slopes"] = operands["alibi_slopes"].astype(np.float32)
    if "bias" in options:
        bias = normal(options.pop("bias"), dtype, 4)
        operands["bias"] = bias > -1 if options.pop("mask", False) else bias
    if "dropout_rate" in options:
        operands["dropout_seed"] = seeds()
    operands["kv_lengths"] = lengths(1023, 400)
    agree(operands, is_causal=causal, **options)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Of the arrays, relative to the second."""
    x, y = x.astype(np.float32), y.astype(np.float32)
    return float(np.linalg.norm(x - y)) / (float(np.linalg.norm(y)) + 1e-6)


def agree(operands: Operands, *, dout_ends: Sequence[int] | None = None, **options: object) -> None:
    """Both kernels have the same gradients, deterministic or not, and what is to repeat repeats."""
    ((out, lse),) = call(operands, PORTABLE, **options)
    dout = normal(out.shape, out.dtype, 5)
    operands |= {"out": out, "lse": lse, "dout": dout}
    if dout_ends is not None:
        operands["dout"] = poison(dout, dout_ends)
    operands["dlse"] = np.sin(np.where(np.isfinite(lse), lse, 0))
    free, ordered = ({"deterministic": deterministic} for deterministic in (False, True))
    variants = [kernel | order for order in (free, ordered) for kernel in (OURS, PORTABLE)]
    program, arrays = prepare(operands, *variants, kind="backward", **options)
    first, again = (on_host(program(*arrays)) for _ in range(2))
    for got, wanted in (first[:2], first[2:]):
        for x, y in zip(got, wanted, strict=True):
            assert distance(x, y) <= 1e-2
    # Without order, several blocks of keys add to the gradient of the query, which comes first.
    for got, repeated in ((first[0][1:], again[0][1:]), (first[2], again[2])):
        for x, y in zip(got, repeated, strict=True):
            np.testing.assert_array_equal(bits(x), bits(y))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
