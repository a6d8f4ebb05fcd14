"""Short sequences and small batches on the Hopper kernel: what it plans, and that it is right.

Its tiles may hold the rows of all heads of a group, its keys may be split over CTAs, and two CTAs
may share an SM. Few tiles are planned where they are fewer than SMs, so the sizes here are those
of single requests. test_determinism.py repeats such calls.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_baracuda.testing import (
    AttentionCase,
    check_attention,
    make_attention_inputs,
    run_attention,
)

# Few rows of queries and many keys: split, and with groups packed in a tile.
SPLIT = AttentionCase("split", batch=1, query_length=16, key_length=3000, group=4, head_dim=128)
PACKED_SPLIT = AttentionCase(
    "varlen",
    query_length=140,
    key_length=6000,
    group=4,
    head_dim=128,
    cu_seqlens_q=(3, 20, 20, 61, 130),
    cu_seqlens_k=(0, 2500, 2600, 2600, 5900),
    is_causal=True,
)


def variants() -> dict[str, AttentionCase]:
    """What goes through the rows of a packed tile, and through splits, one by one."""
    split = {
        "plain": {},
        "float16": {"dtype": "float16"},
        "causal": {"is_causal": True},
        "causal-more-queries": {"is_causal": True, "query_length": 300, "key_length": 1100},
        "window": {"local_window_size": (1000, 0), "is_causal": True, "query_length": 90},
        "sink-tokens": {"local_window_size": (600, 20), "sink_tokens": 150, "query_length": 40},
        "sinks": {"sinks": True},
        "sinks-lengths": {"sinks": True, "batch": 3, "kv_lengths": (0, 700, 2999)},
        "lengths": {"batch": 2, "kv_lengths": (1, 2000), "query_lengths": (16, 7)},
        "hidden-rows": {"is_causal": True, "query_length": 1200, "key_length": 1100, "group": 1},
        "top-left": {"is_causal": True, "top_left": True, "query_length": 100},
        "segments": {"segments": "packed", "batch": 2, "query_length": 60},
        "segments-shuffled": {"segments": "shuffled", "query_length": 60, "key_length": 1500},
        "large-logits": {"query_factor": 5.0, "key_factor": 3.0},
        "one-query": {"query_length": 1},
        "one-head-a-group": {"group": 1, "kv_heads": 3, "query_length": 130},
        "group-of-3": {"group": 3, "query_length": 50},
        "group-of-7": {"group": 7, "query_length": 19, "is_causal": True},
        "group-of-128": {"group": 128, "kv_heads": 1, "query_length": 3, "key_length": 1030},
        "group-of-130": {"group": 130, "kv_heads": 1, "query_length": 2, "key_length": 1030},
        "dim-64": {"head_dim": 64, "is_causal": True},
        "dim-40": {"head_dim": 40, "value_dim": 24},
        "dim-96": {"head_dim": 96, "is_causal": True},
        "dim-192-128": {"head_dim": 192, "value_dim": 128},
        "dim-256": {"head_dim": 256, "is_causal": True, "query_length": 33},
    }
    packed = {
        "varlen": {},
        "varlen-window": {"local_window_size": 700, "sink_tokens": 3},
        "varlen-sinks": {"sinks": True, "is_causal": False},
        "varlen-segments": {"segments": "packed"},
        "varlen-too-long": {"max_seqlens": (20, 3300)},
    }
    table = {name: dataclasses.replace(SPLIT, **options) for name, options in split.items()}
    table |= {name: dataclasses.replace(PACKED_SPLIT, **o) for name, o in packed.items()}
    return table


# Lengths around tiles, and diagonals between them: of some blocks one warpgroup sees all, the other
# nothing. Groups are packed where that saves tiles, whatever the number of keys.
LENGTHS = [(512, 512), (500, 564), (129, 193), (64, 128), (300, 200), (1023, 1024), (130, 2047)]
DIMS = [(64, 64), (128, 128), (192, 128), (192, 192), (256, 256)]


@pytest.mark.gpu
@pytest.mark.parametrize("case", variants().values(), ids=variants())
def test_few_tiles(case):
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, implementation="cuda")
    for report in check_attention(case, inputs, results):
        report.check()


@pytest.mark.gpu
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("window", [None, (100, 0)])
def test_diagonal(dims, lengths, window):
    case = AttentionCase(
        "diagonal",
        batch=2,
        query_length=lengths[0],
        key_length=lengths[1],
        kv_heads=2,
        group=1,
        head_dim=dims[0],
        value_dim=dims[1],
        is_causal=True,
        local_window_size=window,
        kv_lengths=(lengths[1], lengths[1] // 2),
        query_lengths=(lengths[0], lengths[0] - 70 if lengths[0] > 70 else 0),
    )
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, implementation="cuda")
    for report in check_attention(case, inputs, results):
        report.check()


@pytest.mark.gpu
@pytest.mark.long
def test_many_tiles_of_each_kind_in_one_call():
    """More tiles than CTAs: pipelines, turns and the counter go on from tile to tile."""
    sizes = [(1, 450, 450, 128), (8, 24, 450, 128), (1, 130, 2100, 128)]
    sizes += [(1, 450, 450, 64), (8, 24, 450, 64)]
    for group, length, keys, dim in sizes:
        case = AttentionCase(
            "many",
            batch=20,
            query_length=length,
            key_length=keys,
            kv_heads=4,
            group=group,
            head_dim=dim,
            is_causal=True,
            kv_lengths=tuple(keys - 3 * n for n in range(20)),
        )
        inputs = make_attention_inputs(case)
        results = run_attention(case, inputs, implementation="cuda")
        for report in check_attention(case, inputs, results):
            report.check()


@pytest.mark.gpu
def test_a_group_in_a_tile_has_the_bits_of_its_heads_alone():
    """Keys are few enough not to be split: packing changes where a row is, not how it is added."""
    case = AttentionCase(
        "groups", batch=40, query_length=16, key_length=450, kv_heads=8, group=8, head_dim=128
    )
    inputs = make_attention_inputs(case)
    together = run_attention(case, inputs, implementation="cuda")["out"]
    for head in (0, 13, 63):
        one = dataclasses.replace(case, kv_heads=1, group=1)
        of_head = dataclasses.replace(
            inputs,
            query=inputs.query[:, :, head : head + 1],
            key=inputs.key[:, :, head // 8 : head // 8 + 1],
            value=inputs.value[:, :, head // 8 : head // 8 + 1],
        )
        alone = run_attention(one, of_head, implementation="cuda")["out"]
        np.testing.assert_array_equal(alone[:, :, 0], together[:, :, head])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(1000, 4100, 128), (2048, 8192, 128), (250, 5000, 104)], ids=str)
def test_pairs_of_tiles_have_the_bits_of_single_ones(sizes, dtype):
    """Lengths that hide nothing: a call with them is not planned in pairs."""
    rows, keys, dim = sizes
    pairs = AttentionCase(
        "pairs",
        batch=2,
        query_length=rows,
        key_length=keys,
        kv_heads=5,
        group=4 if rows > 250 else 16,
        head_dim=dim,
        dtype=dtype,
        sinks=True,
    )
    single = dataclasses.replace(pairs, kv_lengths=(keys, keys))
    inputs = make_attention_inputs(pairs)
    got = run_attention(pairs, inputs, implementation="cuda")
    with_lengths = dataclasses.replace(
        inputs, key_value_seq_lengths=make_attention_inputs(single).key_value_seq_lengths
    )
    expected = run_attention(single, with_lengths, implementation="cuda")
    for name in ("out", "lse"):
        np.testing.assert_array_equal(got[name], expected[name])
