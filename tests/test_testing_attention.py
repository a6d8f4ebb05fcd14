"""The tools that judge flash_attention: they must catch what is planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_baracuda.testing import (
    ATTENTION_CASES,
    AttentionCase,
    attention_oracle,
    check_attention,
    make_attention_inputs,
    reference_attention,
)
from jax_baracuda.testing.attention_small_calls import small_cases

CASE = AttentionCase(
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
def right():
    """Inputs of a case, and right results: the same-precision reference."""
    inputs = make_attention_inputs(CASE)
    return inputs, reference_attention(CASE, inputs, gradients=True)


def judge(right, results) -> dict[str, bool]:
    """Which of the results are right."""
    inputs, reference = right
    reports = check_attention(CASE, inputs, results, reference=reference)
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


def test_check_attention_accepts_the_reference(right):
    assert all(judge(right, right[1]).values())


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
def test_check_attention_catches(name, plant, right):
    results = right[1]
    wrong = np.asarray(plant(results[name])).astype(results[name].dtype)
    assert not judge(right, results | {name: wrong})[name]


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
def test_check_attention_catches_other_options(change, right):
    """An option that a kernel forgets, or is one off with, is seen in the gradients too."""
    inputs, results = right
    other = dataclasses.replace(CASE, **change)
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
    verdict = judge(right, wrong)
    assert not verdict["dquery"]
    if change != {"lse_cotangent": False}:
        assert not (verdict["out"] and verdict["lse"])
