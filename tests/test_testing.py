"""The tools that judge the kernels: they must catch what is planted."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda.testing import (
    ATTENTION_CASES,
    DECODE_CASES,
    AttentionCase,
    DecodeCase,
    attention_oracle,
    check_attention,
    check_decode,
    compare,
    decode_oracle,
    kernel_times,
    make_attention_inputs,
    make_inputs,
    reference_attention,
    reference_decode,
    rotation,
    time_chained,
)
from jax_baracuda.testing.attention_small_calls import small_cases
from jax_baracuda.testing.timing import add_xla_flags, compile_chain, time_program

CASE = DecodeCase("planted", batch=3, capacity=100, lengths=(100, 0, 37), sinks=True)


@pytest.fixture(scope="module")
def right():
    """Inputs of a case, and a right result: the same-precision reference."""
    inputs = make_inputs(CASE)
    return inputs, *reference_decode(CASE, inputs)


# ---- compare


def test_compare_passes_what_the_reference_reaches():
    exact = np.linspace(-1, 1, 50)
    reference = exact + 1e-3
    report = compare(exact - 1.9e-3, exact, reference).check()
    assert report.ok
    assert report.error == pytest.approx(1.9e-3)
    assert report.reference_error == pytest.approx(1e-3)
    assert report.bound == pytest.approx(2e-3)


def test_compare_names_the_worst_coordinate():
    exact = np.zeros((4, 5))
    actual = exact.copy()
    actual[2, 3] = 0.5
    actual[1, 1] = 0.25
    report = compare(actual, exact, exact + 1e-3, name="planted")
    assert not report.ok
    assert report.worst == (2, 3)
    with pytest.raises(AssertionError, match=r"planted: error 5\.000e-01 at \(2, 3\)"):
        report.check()


def test_compare_is_relative_to_the_reference():
    exact = np.ones(3)
    assert not compare(exact + 3e-3, exact, exact + 1e-3).ok
    assert compare(exact + 3e-3, exact, exact + 1e-3, factor=3.1).ok
    assert compare(exact + 3e-3, exact, exact + 1e-3, epsilon=1.1e-3).ok


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (np.nan, 0.0),
        (np.inf, 0.0),
        (0.0, np.nan),
        (0.0, -np.inf),
        (np.inf, -np.inf),
        (np.nan, np.inf),
    ],
)
def test_compare_wants_equal_masks(wrong, expected):
    exact = np.array([1.0, expected, 2.0])
    actual = np.array([1.0, wrong, 2.0])
    report = compare(actual, exact, exact, epsilon=1e9)
    assert not report.ok
    assert report.worst == (1,)
    assert compare(exact, exact, exact).ok


def test_compare_wants_equal_shapes():
    assert not compare(np.zeros((2, 1)), np.zeros((2, 3)), np.zeros((2, 3)), epsilon=1.0).ok
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))).ok
    with pytest.raises(ValueError, match="the reference"):
        compare(np.zeros(3), np.zeros(3), np.array([0, np.nan, 0]))


# ---- decode cases


def test_table_of_cases():
    """Names are unique, and the awkward sizes are there."""
    names = [case.name for case in DECODE_CASES]
    assert len(set(names)) == len(names)
    assert {1, 7, 80, 96, 192, 255, 256} <= {case.head_dim for case in DECODE_CASES}
    assert {1, 2, 3, 4, 7, 8, 16, 32, 64, 71, 128} <= {case.group for case in DECODE_CASES}
    assert {0, 1, 15, 63, 64, 65, 127, 1000, 4097} <= {case.capacity for case in DECODE_CASES}
    assert {None, 1, 133} <= {case.num_splits for case in DECODE_CASES}
    for field in dataclasses.fields(DecodeCase):
        assert len({getattr(case, field.name) for case in DECODE_CASES}) > 1, field.name


def test_inputs_are_poisoned_where_nothing_is_visible():
    case = dataclasses.replace(CASE, kv_layout="NHD", local_window_size=4, sink_tokens=2)
    inputs = make_inputs(case)
    expected = np.zeros((3, 100), bool)
    expected[0, [0, 1, *range(95, 100)]] = True
    expected[2, [0, 1, *range(32, 37)]] = True
    for cache in (inputs.key, inputs.value):
        finite = np.isfinite(cache.astype(np.float32))
        np.testing.assert_array_equal(finite.all((2, 3)), expected)
        np.testing.assert_array_equal(finite.any((2, 3)), expected)
    again = make_inputs(case)
    np.testing.assert_array_equal(again.query, inputs.query)
    assert (make_inputs(case, seed=1).query != inputs.query).any()


def test_oracle_by_hand():
    """Two keys with logits 0 and log 3 give weights 1/4 and 3/4."""
    case = DecodeCase(
        "hand", batch=1, kv_heads=1, group=1, capacity=2, head_dim=1, scale=1.0, dtype="float32"
    )
    inputs = make_inputs(case)
    inputs.query[:], inputs.key[0, 0, :, 0] = 1, (0, np.log(3))
    inputs.value[0, 0, :, 0] = (4, 8)
    oracle = decode_oracle(case, inputs)
    assert oracle.out.item() == pytest.approx(7)
    assert oracle.lse.item() == pytest.approx(np.log(4))


def test_check_decode_accepts_the_reference(right):
    inputs, out, lse = right
    assert all(report.ok for report in check_decode(CASE, inputs, out, lse))


def plant_value(out, lse):
    out[2, 3, 5] += np.asarray(0.05, out.dtype)


def plant_stale_row(out, lse):
    out[0, 1] = out[0, 2]


def plant_nan(out, lse):
    out[0, 0, 0] = np.nan


def plant_empty_request(out, lse):
    out[1, 0, 0] = 0.01


def plant_lse(out, lse):
    lse[0, 0] += 1e-3


def plant_lse_of_empty_request(out, lse):
    lse[1] = 0


def plant_lse_in_base_two(out, lse):
    lse[:] = lse / np.float32(np.log(2))


@pytest.mark.parametrize(
    "plant",
    [
        plant_value,
        plant_stale_row,
        plant_nan,
        plant_empty_request,
        plant_lse,
        plant_lse_of_empty_request,
        plant_lse_in_base_two,
    ],
)
def test_check_decode_catches(plant, right):
    inputs, out, lse = right
    out, lse = out.copy(), lse.copy()
    plant(out, lse)
    assert not all(report.ok for report in check_decode(CASE, inputs, out, lse))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.126},
        {"sinks": False},
        {"lengths": (99, 0, 37)},
        {"local_window_size": 98},
        {"logits_soft_cap": 50.0},
        {"alibi_slopes": "head"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_check_decode_catches_other_options(change, right):
    """An option that a kernel forgets, or is one off with, is seen."""
    inputs, _, _ = right
    other = dataclasses.replace(CASE, **change)
    drawn = make_inputs(dataclasses.replace(other, name=CASE.name))
    changed = dataclasses.replace(
        inputs, sinks=drawn.sinks, alibi_slopes=drawn.alibi_slopes, kv_lengths=drawn.kv_lengths
    )
    wrong = reference_decode(other, changed)
    assert not all(report.ok for report in check_decode(CASE, inputs, *wrong))


# ---- attention cases

ATTENTION = AttentionCase(
    "planted",
    query_length=90,
    key_length=100,
    is_causal=True,
    local_window_size=(40, 0),
    sink_tokens=2,
    sinks=True,
    bias="q",
    query_lengths=(90, 70),
    kv_lengths=(100, 75),
    dropout_rate=0.2,
    lse_cotangent=True,
)


@pytest.fixture(scope="module")
def right_attention():
    """Inputs of a case, and right results: the same-precision reference."""
    inputs = make_attention_inputs(ATTENTION)
    return inputs, reference_attention(ATTENTION, inputs, gradients=True)


def judge_attention(right_attention, results) -> dict[str, bool]:
    """Which of the results are right."""
    inputs, reference = right_attention
    reports = check_attention(ATTENTION, inputs, results, reference=reference)
    return {report.name.removeprefix("planted "): report.ok for report in reports}


def test_table_of_attention_cases():
    """Names are unique, every option is used, and the awkward sizes are there."""
    names = [case.name for case in ATTENTION_CASES]
    assert len(set(names)) == len(names)
    widths = {1, 8, 32, 40, 64, 80, 96, 100, 128, 160, 192, 256}
    assert widths <= {case.head_dim for case in ATTENTION_CASES}
    pairs = {(case.head_dim, case.values) for case in ATTENTION_CASES}
    assert {(192, 128), (64, 128), (128, 64), (40, 72)} <= pairs
    lengths = {(case.query_length, case.keys) for case in ATTENTION_CASES}
    assert {(1, 1), (239, 1), (799, 3), (113, 203), (1023, 1024), (4224, 4224)} <= lengths
    for field in dataclasses.fields(AttentionCase):
        assert len({getattr(case, field.name) for case in ATTENTION_CASES}) > 1, field.name
    small = [case.name for case in small_cases()]
    assert len(set(small)) == len(small)


def test_attention_inputs_are_poisoned_where_they_are_hidden():
    case = AttentionCase(
        "poison",
        query_length=40,
        key_length=50,
        cu_seqlens_q=(3, 10, 30),
        cu_seqlens_k=(0, 20, 45),
        query_lengths=(7, 4),
        kv_lengths=(20, 0),
    )
    inputs = make_attention_inputs(case)
    queries, keys = np.zeros(40, bool), np.zeros(50, bool)
    queries[[*range(3, 10), *range(10, 14)]] = True
    keys[:20] = True
    for array, seen in (
        (inputs.query, queries),
        (inputs.dout, queries),
        (inputs.key, keys),
        (inputs.value, keys),
    ):
        finite = np.isfinite(array.astype(np.float32))
        np.testing.assert_array_equal(finite.all((1, 2)), seen)
        np.testing.assert_array_equal(finite.any((1, 2)), seen)

    padded = make_attention_inputs(dataclasses.replace(ATTENTION, segments="padded"))
    hidden = padded.key_value_segment_ids == -2
    assert hidden.any()
    assert not np.isfinite(padded.key.astype(np.float32)[hidden]).any()


def test_attention_oracle_by_hand():
    """Two keys with logits 0 and log 3 and a sink of log 4: weights 1/8 and 3/8."""
    case = AttentionCase(
        "hand",
        batch=1,
        kv_heads=1,
        group=1,
        query_length=1,
        key_length=2,
        head_dim=1,
        scale=1.0,
        dtype="float32",
        sinks=True,
    )
    inputs = make_attention_inputs(case)
    inputs.query[:], inputs.key[0, :, 0, 0] = 1, (0, np.log(3))
    inputs.value[0, :, 0, 0], inputs.sinks[:], inputs.dout[:] = (8, 16), np.log(4), 1
    results = attention_oracle(case, inputs, gradients=True).results
    # With an output of 7, the logits' gradients are 1/8 (8 - 7), 3/8 (16 - 7) and 1/2 (0 - 7).
    expected = {
        "out": [7],
        "lse": [np.log(8)],
        "dquery": [27 / 8 * np.log(3)],
        "dkey": [1 / 8, 27 / 8],
        "dvalue": [1 / 8, 3 / 8],
        "dsinks": [-7 / 2],
    }
    assert set(results) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(results[name].ravel(), values, rtol=1e-6, err_msg=name)


def test_check_attention_accepts_the_reference(right_attention):
    assert all(judge_attention(right_attention, right_attention[1]).values())


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("out", lambda x: x * np.asarray(1.02, x.dtype)),
        ("out", lambda x: np.where(np.arange(x.shape[1])[:, None, None] == 50, 0, x)),
        ("lse", lambda x: x + np.float32(1e-3)),
        ("lse", lambda x: x / np.float32(np.log(2))),
        ("dquery", lambda x: np.roll(x, 1, axis=2)),
        ("dquery", lambda x: np.where(np.arange(x.shape[1])[:, None, None] == 3, np.nan, x)),
        ("dkey", lambda x: x * np.asarray(1.03, x.dtype)),
        ("dvalue", lambda x: np.where(np.arange(x.shape[1])[:, None, None] == 50, 0, x)),
        ("dbias", lambda x: x / 2),
        ("dsinks", lambda x: -x),
    ],
)
def test_check_attention_catches(name, plant, right_attention):
    results = right_attention[1]
    wrong = np.asarray(plant(results[name])).astype(results[name].dtype)
    assert not judge_attention(right_attention, results | {name: wrong})[name]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.127},
        {"is_causal": False, "local_window_size": (40, 5)},
        {"top_left": True},
        {"local_window_size": (39, 0)},
        {"sink_tokens": 3},
        {"sinks": False},
        {"bias": None},
        {"query_lengths": (90, 69)},
        {"kv_lengths": (100, 74)},
        {"dropout_rate": 0.21},
        {"dropout_rate": 0.0},
        {"logits_soft_cap": 5.0},
        {"alibi_slopes": "head"},
        {"segments": "packed"},
        {"lse_cotangent": False},
    ],
    ids=str,
)
def test_check_attention_catches_other_options(change, right_attention):
    """An option that a kernel forgets, or is one off with, is seen in the gradients too."""
    inputs, results = right_attention
    other = dataclasses.replace(ATTENTION, **change)
    drawn = make_attention_inputs(other)
    names = {
        "sinks": "sinks",
        "bias": "bias",
        "query_lengths": "query_seq_lengths",
        "kv_lengths": "key_value_seq_lengths",
        "alibi_slopes": "alibi_slopes",
        "lse_cotangent": "dlse",
    }
    changed = {names[key]: getattr(drawn, names[key]) for key in change if key in names}
    if "segments" in change:
        changed["query_segment_ids"] = drawn.query_segment_ids
        changed["key_value_segment_ids"] = drawn.key_value_segment_ids
    if change.get("dropout_rate") == 0.0:
        changed["dropout_seed"] = None
    wrong = reference_attention(other, dataclasses.replace(inputs, **changed), gradients=True)
    wrong = {name: wrong.get(name, np.zeros_like(array)) for name, array in results.items()}
    right = judge_attention(right_attention, wrong)
    assert not right["dquery"]
    if change != {"lse_cotangent": False}:
        assert not (right["out"] and right["lse"])


# ---- timing


def test_rotation():
    assert rotation(1 << 20, total=1 << 26) == 64
    assert rotation(1 << 20, total=10 << 20) == 10
    assert rotation(1 << 40) == 1


def test_time_chained_runs_every_call_in_turn():
    """No call may be merged with another or dropped: the program holds all of them."""

    def op(query, weights):
        return jnp.tanh(query @ weights)

    query = jnp.ones((4, 4))
    sets = [(jnp.eye(4) * i,) for i in range(1, 4)]
    program = compile_chain(op, query, sets, calls=6)
    assert program.as_text().count(" tanh(") == 6
    expected = query
    for i in range(6):
        expected = op(expected, *sets[i % 3])
    np.testing.assert_allclose(program(jnp.copy(query), tuple(sets)), expected, rtol=1e-6)

    timing = time_chained(op, query, sets, seconds=0.02, samples=3)
    assert timing.calls == 3
    assert 0 < timing.fastest <= timing.ms <= timing.slowest
    assert not query.is_deleted()


def test_time_program():
    """The time of one of the calls of a program."""
    x = jnp.ones((64, 64))
    program = jax.jit(lambda a, b: (jnp.tanh(a @ b), jnp.tanh(b @ a))).lower(x, x).compile()
    timing = time_program(program, (x, x), calls=2, seconds=0.02, samples=3)
    assert timing.calls == 2
    assert 0 < timing.fastest <= timing.ms <= timing.slowest


def test_add_xla_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    add_xla_flags("--a=2", "--b=3")
    assert os.environ["XLA_FLAGS"] == "--a=1 --b=3"


@pytest.mark.gpu
def test_kernel_times_sees_the_kernels():
    x = jnp.ones((512, 512))
    f = jax.jit(lambda x: jnp.sin(x) @ x)
    jax.block_until_ready(f(x))
    found = kernel_times(lambda: f(x))
    assert found
    assert all(count > 0 and ms > 0 for count, ms in found.values())


@pytest.mark.gpu
def test_both_timings_agree():
    """The wall clock over a chain and the profiler's kernel durations tell the same time."""
    x = jnp.ones((4096, 4096), jnp.bfloat16)

    def op(query, weights):
        return query @ weights

    wall = time_chained(op, x, [(x,)], calls=20, seconds=0.1)
    f = jax.jit(op)
    jax.block_until_ready(f(x, x))
    traced = sum(ms for _, ms in kernel_times(lambda: [f(x, x) for _ in range(10)]).values()) / 10
    assert wall.ms == pytest.approx(traced, rel=0.3)
