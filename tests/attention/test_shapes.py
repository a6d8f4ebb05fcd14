"""Validation, workspace, dropout's random words and explain: what needs no kernel."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda._src import compat, registry
from jax_baracuda._src.attention import call, dropout, shapes
from jax_baracuda._src.attention.reference import flash_attention_reference


def aval(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


SIZES = shapes.AttentionShape(2, 100, 130, 8, 4, 72, 40, "bfloat16", 1, False)
DENSE = (aval(2, 100, 8, 72), aval(2, 130, 4, 72), aval(2, 130, 4, 40))
PACKED = (aval(100, 8, 72), aval(130, 4, 72), aval(130, 4, 40), *[aval(4, dtype="int32")] * 2)


def test_the_operands_give_the_sizes():
    assert shapes.check_operands(*DENSE) == SIZES
    assert SIZES.group == 2
    packed = shapes.check_packed_operands(*PACKED, max_seqlen_q=60, max_seqlen_k=70)
    assert packed == dataclasses.replace(SIZES, batch=1, sequences=3)


@pytest.mark.parametrize("shape", [(2, 8, 100, 130), (1, 8, 1, 130), (1, 1, 1, 130)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "bool"])
def test_a_bias_may_be_one_for_all(shape, dtype):
    assert shapes.check_operands(*DENSE, bias=aval(*shape, dtype=dtype)) == SIZES


def test_the_bias_of_packed_sequences_is_as_long_as_the_longest():
    longest = dict(max_seqlen_q=60, max_seqlen_k=70)
    shapes.check_packed_operands(*PACKED, **longest, bias=aval(3, 8, 60, 70))
    with pytest.raises(ValueError, match=r"bias.*max_seqlen_q or 1.*\(3, 8, 60, 70\)"):
        shapes.check_packed_operands(*PACKED, **longest, bias=aval(3, 8, 100, 130))


@pytest.mark.parametrize("name", ["query", "key"])
def test_more_rows_than_int32_can_count_are_not_implemented(name):
    for rows in (2**30 - 1, 2**30):
        query = aval(1, rows if name == "query" else 1, 1, 8)
        key = aval(1, rows if name == "key" else 1, 1, 8)
        if rows < 2**30:
            shapes.check_operands(query, key, key)
            continue
        with pytest.raises(NotImplementedError, match=f"{name} has {rows} rows"):
            shapes.check_operands(query, key, key)


def test_segment_ids_are_noted():
    ids = dict(
        query_segment_ids=aval(2, 100, dtype="int32"),
        key_value_segment_ids=aval(2, 130, dtype="int64"),
    )
    assert shapes.check_operands(*DENSE, **ids) == dataclasses.replace(SIZES, segments=True)


@pytest.mark.parametrize(
    ("window", "sides"),
    [
        (None, (-1, -1)),
        (0, (0, 0)),
        (7, (7, 7)),
        ((3, 0), (3, 0)),
        ([3, None], (3, -1)),
        ((None, 4), (-1, 4)),
        ((np.int64(4), 2**40), (4, 2**31 - 1)),
    ],
)
def test_local_window_size_counts_keys_on_both_sides(window, sides):
    assert shapes.check_window(window) == sides


def test_options_in_the_form_of_the_kernel():
    assert shapes.check_options(64) == {
        "scale": 0.125,
        "causal": False,
        "top_left": False,
        "window_left": -1,
        "window_right": -1,
        "sink_tokens": 0,
        "logits_soft_cap": 0.0,
        "dropout_rate": 0.0,
        "max_seqlen_q": 0,
        "max_seqlen_k": 0,
        "deterministic": False,
    }
    given = shapes.check_options(
        64,
        scale=np.float32(2),
        is_causal=np.bool_(True),
        local_window_size=(5, 9),
        sink_tokens=np.int32(3),
        logits_soft_cap=30,
        dropout_rate=0.1,
        deterministic=True,
        max_seqlen_q=np.int64(17),
        max_seqlen_k=2**40,
    )
    assert given == {
        "scale": 2.0,
        "causal": True,
        "top_left": False,
        "window_left": 5,
        "window_right": 0,  # nothing lies to the right of a causal diagonal
        "sink_tokens": 3,
        "logits_soft_cap": 30.0,
        "dropout_rate": float(np.float32(0.1)),  # as the kernel holds it
        "max_seqlen_q": 17,
        "max_seqlen_k": 2**31 - 1,
        "deterministic": True,
    }
    assert {type(value) for value in given.values()} == {float, int, bool}  # hashable, plain
    assert set(given) == set(shapes.AttentionOptions.__annotations__)


def test_causal_alone_is_no_window():
    options = shapes.check_options(64, is_causal=True)
    assert (options["window_left"], options["window_right"]) == (-1, -1)


# 16 pairs of batch and head with 2 blocks of 64 rows, or 8 with 4: sums of 96 columns, two
# statistics and turns.
HOPPER = 16 * 2 * (4 * 64 * (96 + 2) + 4 * 2)
HOPPER_PAIR = 16 * 2 * (4 * 64 * (192 + 2) + 4 * 16)


# 100 and 130 rows are 2 and 3 tiles of 64; a head dimension of 72 is padded to 96.
@pytest.mark.parametrize(
    ("changes", "forward", "backward"),
    [
        (
            {"dtype": "float32"},
            256,
            2048 + 4 * 2 * 100 * 8 * 96 + 4 * 2 * 100 * 8 + 4 * 8 * 2 * (2 + 1),
        ),
        ({}, 256, 2048 + HOPPER),
        ({"head_dim": 136}, 256, 2048 + HOPPER_PAIR),
        ({"value_dim": 192}, 256, 2048 + HOPPER_PAIR),
        (
            {"segments": True},
            256 + 8 * 2 * (2 + 3),
            2048 + 8 * 2 * (2 + 3) + HOPPER,
        ),
        (
            {"batch": 1, "sequences": 3},
            256,
            2048 + HOPPER,
        ),
        ({"keys": 1100}, 256 + 4 * 4 * (2 * 100 * 8) * (40 + 1), None),
        ({"keys": 1100, "query_rows": 600}, 256, None),
        ({"keys": 1100, "dtype": "float32"}, 256, None),
        ({"keys": 511}, 256, None),
        ({"batch": 0}, 256, 2048),
        ({"query_rows": 0, "keys": 0}, 256, 2048 + 4 * 8 * 2),
    ],
)
def test_workspace_bytes(changes, forward, backward):
    shape = dataclasses.replace(SIZES, **changes)
    assert shapes.workspace_bytes("forward", shape) == forward
    assert shapes.workspace_bytes("bias_grad", shape) == forward - shapes.split_bytes(shape)
    if backward is not None:
        assert shapes.workspace_bytes("backward", shape) == backward


def test_the_workspace_grows_with_the_length_and_not_its_square():
    def total(length):
        shape = dataclasses.replace(SIZES, query_rows=length, keys=length, segments=True)
        return sum(shapes.workspace_bytes(kind, shape) for kind in shapes.OPERANDS)

    assert total(2**16) < 2.1 * total(2**15)


def test_the_reference_takes_the_operands_and_options_of_the_forward_kernel():
    parameters = inspect.signature(flash_attention_reference).parameters
    names = (*shapes.OPERANDS["forward"], *shapes.AttentionOptions.__annotations__, "dtype")
    assert tuple(parameters) == tuple(name for name in names if name != "deterministic")
    for operands in shapes.OPERANDS.values():
        assert operands[-10:] == shapes.OPTIONS
        assert set(operands) <= set(shapes.DIMENSIONS)


# Known answers of Random123, the library of Salmon et al., for Philox4x32 with 7 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    given = dropout.philox(tuple(map(jnp.uint32, counter)), tuple(map(jnp.uint32, key)))
    assert [int(word) for word in given] == words


def philox_of_integers(counter, key):
    """The same in Python's integers, which have no width."""
    c, k = list(counter), list(key)
    for _ in range(7):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second % 2**32,
            (first >> 32) ^ c[3] ^ k[1],
            first % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_dropout_keeps_what_the_words_say(rate):
    rng = np.random.default_rng(0)
    seed = rng.integers(0, 2**32, (3, 2, 4), np.uint32)
    rows, columns = np.arange(67), np.arange(141)
    got = dropout.keep_mask(
        jnp.asarray(seed)[:, :, None, None], rows[:, None], columns[None, :], rate
    )
    limit = int(np.floor(float(np.float32(rate)) * 2**15 + 0.5))
    places = [(0, 0, 0, 0), (0, 1, 8, 3), (1, 0, 3, 8), (2, 1, 15, 15), (2, 0, 34, 40)]
    places += [(1, 1, int(i), int(j)) for i, j in zip(rows[1::3], columns[1::6], strict=False)]
    for at in places:
        *block, i, j = at
        seed0, seed1, head, batch = (int(word) for word in seed[tuple(block)])
        counter = (i // 32 * 8 + i % 8, j // 64 * 4 + j % 8 // 2, head, batch)
        x = philox_of_integers(counter, (seed0, seed1))
        k, n = 2 * (i // 8 % 2) + j // 8 % 2, 4 * (i // 16 % 2) + j // 16 % 4
        word = (x[k] + (0x2C9277B5**n if n else 0) * x[(k + 1) % 4]) % 2**32
        assert bool(got[at]) == (word // 2 ** (16 * (j % 2)) % 2**15 >= limit)
    assert got.shape == (3, 2, 67, 141)
    assert abs(float(got.mean()) - (1 - rate)) < 5 * np.sqrt(0.25 / got.size)


@pytest.mark.parametrize(
    ("rate", "steps"),
    [(0.0, 0), (1e-5, 0), (0.1, 3277), (0.5, 2**14), (0.75, 24576), (1 - 2.0**-24, 2**15 - 1)],
)
def test_rates_are_the_nearest_multiples_of_a_step(rate, steps):
    assert dropout.threshold(rate) == steps
    assert abs(steps / 2**15 - rate) <= (2.0**-15 if rate > 0.9999 else 2.0**-16)


def test_no_two_elements_share_random_bits():
    seed = jnp.zeros((4,), jnp.uint32)
    i, j = np.arange(64)[:, None], np.arange(64)[None, :]
    rates = np.linspace(0, 1, 257)[1:-1]
    depth = sum(np.asarray(dropout.keep_mask(seed, i, j, rate)).astype(int) for rate in rates)
    # Uniform: 256 bins of 16, of which no row, column or 16 x 16 block is like another.
    assert np.bincount(depth.ravel(), minlength=256).max() < 45
    blocks = [depth[a : a + 8, b : b + 8] for a in range(0, 64, 8) for b in range(0, 64, 8)]
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_keys_of_any_kind_seed_dropout():
    for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
        first, second = (
            call.check_seed(jax.random.key(n, impl=implementation), 0.1) for n in (1, 2)
        )
        assert (first.shape, first.dtype) == ((2,), jnp.uint32)
        assert (first != second).any()
    words = np.array([5, 6], np.uint32)
    assert (call.check_seed(words, 0.1) == words).all()
    assert call.check_seed(words, 0.0) is None


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_foo=1 --xla_gpu_deterministic_ops", True),
        ("--xla_gpu_deterministic_ops=1 --xla_bar", True),
        ("--xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", False),
    ],
)
def test_the_flag_of_xla_that_asks_for_determinism(monkeypatch, flags, wanted):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert compat.deterministic_ops() is wanted


@pytest.mark.parametrize(
    ("op", "operands", "options"),
    [
        ("flash_attention", DENSE, {}),
        ("flash_attention_varlen", PACKED, dict(max_seqlen_q=60, max_seqlen_k=70)),
    ],
)
def test_explain(monkeypatch, op, operands, options):
    monkeypatch.setenv("XLA_FLAGS", "")
    options |= dict(dropout_rate=0.1, dropout_seed=jax.random.key(0), sinks=aval(8))
    info = jax_baracuda.explain(op, *operands, implementation="cuda", is_causal=True, **options)
    assert (info.op, info.name, info.implementation) == (op, "flash_attention_mma", "cuda")
    assert (info.dtype, info.accumulator) == ("bfloat16", "float32")
    assert info.workspace_bytes == 256
    assert not info.deterministic
    options["deterministic"] = True
    assert jax_baracuda.explain(op, *operands, implementation="cuda", **options).deterministic
    info = jax_baracuda.explain(op, *operands, implementation="reference", **options)
    assert (info.name, info.workspace_bytes) == ("reference", 0)
    with pytest.raises(ValueError, match="dropout_seed is None"):
        jax_baracuda.explain(op, *operands, **options | dict(dropout_seed=None))
    with pytest.raises(TypeError, match="is_casual"):
        jax_baracuda.explain(op, *operands, **options, is_casual=True)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "obstacle"),
    [("bfloat16", 72, ""), ("float16", 70, "multiples of 8"), ("float32", 72, "float32")],
)
def test_explain_names_the_kernel_of_a_hopper_gpu(monkeypatch, dtype, head_dim, obstacle):
    monkeypatch.setattr(registry, "serving_architecture", lambda: "90a")
    operands = [aval(2, 100, heads, head_dim, dtype=dtype) for heads in (8, 4, 4)]
    info = jax_baracuda.explain(
        "flash_attention", *operands, implementation="cuda", logits_soft_cap=5.0, sinks=aval(8)
    )
    assert info.name == ("flash_attention_mma" if obstacle else "flash_attention_wgmma")
    assert ("wgmma does not take" in info.note) == bool(obstacle)
    assert obstacle in info.note


@pytest.mark.parametrize(
    ("sizes", "options", "invariant"),
    [
        ((100, 100), {}, True),
        ((100, 600), {}, False),  # its keys would be split, and those of a large batch not
        ((100, 600), dict(alibi_slopes=aval(8)), True),
        ((2000, 2000), {}, True),
    ],
)
def test_explain_tells_where_bits_depend_on_the_batch(monkeypatch, sizes, options, invariant):
    operands = [
        aval(2, rows, heads, 64, dtype="bfloat16")
        for rows, heads in zip((sizes[0], sizes[1], sizes[1]), (8, 4, 4), strict=True)
    ]
    for architecture in ("90a", "80"):
        monkeypatch.setattr(registry, "serving_architecture", lambda arch=architecture: arch)
        info = jax_baracuda.explain("flash_attention", *operands, implementation="cuda", **options)
        assert info.batch_invariant is (invariant or architecture == "80")


def test_explain_tells_the_plan(monkeypatch):
    plan = {"rows": 128, "keys": 112, "packed": 4, "splits": 3}
    calls = []
    monkeypatch.setattr(registry, "serving_architecture", lambda: "90a")
    monkeypatch.setattr(registry, "hopper_plan", lambda **call: calls.append(call) or plan)
    info = jax_baracuda.explain("flash_attention", *DENSE, implementation="cuda", is_causal=True)
    assert (
        "128 rows and 112 keys, the rows those of 4 heads, the keys split over 3 CTAs" in info.note
    )
    assert calls[0]["causal"] is True
    assert calls[0]["query_rows"] == DENSE[0].shape[1]
    info = jax_baracuda.explain(
        "flash_attention_varlen", *PACKED, max_seqlen_q=6, max_seqlen_k=7, implementation="cuda"
    )
    assert (calls[1]["query_rows"], calls[1]["keys"]) == (6, 7)


# The kernels of head dims: without options or with one, and with several.
HOPPER_BACKWARD = {64: "wgmma", 72: "wgmma", 128: "wgmma", 136: "wgmma_pair", 100: "mma"}
SOME_BACKWARD = {64: "wgmma", 72: "mma", 128: "wgmma", 136: "mma"}


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({}, HOPPER_BACKWARD),
        (dict(logits_soft_cap=5.0), HOPPER_BACKWARD),
        (dict(alibi_slopes=aval(8)), HOPPER_BACKWARD),
        (dict(dropout_rate=0.1, dropout_seed=aval(2, dtype="uint32")), HOPPER_BACKWARD),
        (dict(bias=aval(1, 8, 1, 136)), HOPPER_BACKWARD),
        (dict(bias=aval(1, 8, 100, 136, dtype="float32")), SOME_BACKWARD),
        (dict(bias=aval(1, 8, 100, 136)), SOME_BACKWARD | {72: "wgmma"}),
        (dict(logits_soft_cap=5.0, alibi_slopes=aval(8)), SOME_BACKWARD),
        (dict(logits_soft_cap=5.0, deterministic=True), SOME_BACKWARD),
    ],
)
def test_explain_names_the_kernel_of_the_backward_pass(monkeypatch, options, kernels):
    monkeypatch.setattr(registry, "serving_architecture", lambda: "90a")
    for dim, kernel in kernels.items():
        operands = (aval(2, 100, 8, 64), aval(2, 136, 4, 64), aval(2, 136, 4, dim))
        info = jax_baracuda.explain("flash_attention", *operands, implementation="cuda", **options)
        assert f"the backward pass runs flash_attention_backward_{kernel} and takes" in info.note


def test_explain_says_why_a_call_would_fail(monkeypatch):
    extension = registry.Extension(frozenset(), {}, "it is of last year")
    monkeypatch.setattr(registry, "register", lambda: extension)
    info = jax_baracuda.explain("flash_attention", *DENSE, implementation="cuda")
    assert "it is of last year" in info.note


def _bias(dtype, rows, keys=64):
    return dict(bias=jax.ShapeDtypeStruct((1, 4, rows, keys), dtype))


@pytest.mark.parametrize(
    ("options", "features"),
    [
        (dict(), 0),
        (_bias("bfloat16", 48), 4),
        (dict(logits_soft_cap=56.0), 64),
        (dict(logits_soft_cap=57.0), 1),
        (_bias("float16", 48, 60), 31),  # rows that are no multiples of 16 bytes
        (_bias("float32", 48, 60), 32),
        (_bias("float32", 48, 61), 31),
        (_bias("bool", 48), 31),
        (_bias("float32", 1, 61), 16),
        (_bias("bool", 1), 16),
        (dict(dropout_rate=0.1), 8),
        (dict(dropout_rate=0.98), 31),
        (dict(dropout_rate=0.1, logits_soft_cap=5.0), 9),
        (dict(_bias("bool", 1), scale=-1.0), 31),
    ],
)
def test_explain_asks_for_the_kernel_of_the_options(monkeypatch, options, features):
    """As a sum of Feature in ffi/attention/params.h, after hopper_features()."""
    asked = []
    monkeypatch.setattr(registry, "serving_architecture", lambda: "90a")
    monkeypatch.setattr(
        registry, "hopper_plan", lambda **call: asked.append(call["features"]) or {}
    )
    keys = options["bias"].shape[-1] if "bias" in options else 64
    query, key = (jax.ShapeDtypeStruct((2, n, 4, 64), "bfloat16") for n in (48, keys))
    if "dropout_rate" in options:
        options = dict(options, dropout_seed=np.zeros(2, np.uint32))
    jax_baracuda.explain("flash_attention", query, key, key, implementation="cuda", **options)
    assert asked == [features]
