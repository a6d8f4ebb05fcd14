"""The tools that judge the kernels: they must catch what is planted."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda.testing import (
    DECODE_CASES,
    DecodeCase,
    check_decode,
    compare,
    decode_oracle,
    kernel_times,
    make_inputs,
    reference_decode,
    rotation,
    time_chained,
)
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

    f = jax.jit(op)
    jax.block_until_ready(f(x, x))
    for _ in range(5):  # beside other test processes a time may be anything, now and then
        wall = time_chained(op, x, [(x,)], calls=20, seconds=0.1)
        kernels = kernel_times(lambda: [f(x, x) for _ in range(10)])
        traced = sum(ms for _, ms in kernels.values()) / 10
        if wall.ms == pytest.approx(traced, rel=0.3):
            return
    assert wall.ms == pytest.approx(traced, rel=0.3)
