"""The kernel's own choice of layout and split, a host function of the extension."""

from __future__ import annotations

import pytest

from jax_baracuda._src.decode import shapes

ffi = pytest.importorskip(
    "jax_baracuda._ffi", reason="this installation has no kernels", exc_type=ImportError
)

SMS = 132


def plan(*, num_splits: int = 0, workspace: int | None = None, **sizes: object) -> dict[str, int]:
    """decode_plan on an H200-like device, with the workspace that the primitive would give."""
    case = {
        "dtype": "bfloat16",
        "batch": 1,
        "kv_heads": 8,
        "group": 4,
        "head_dim": 128,
        "kv_capacity": 8192,
        "uneven_lengths": False,
    } | sizes
    if workspace is None:
        shape = shapes.DecodeShape(
            batch=case["batch"],
            q_heads=case["kv_heads"] * case["group"],
            kv_heads=case["kv_heads"],
            capacity=case["kv_capacity"],
            head_dim=case["head_dim"],
            dtype=case["dtype"],
        )
        workspace = shapes.workspace_bytes(shape, num_splits)
    return ffi.decode_plan(
        **case,
        num_splits=num_splits,
        sms=SMS,
        ctas_per_sm=3,
        pairs=66,
        workspace_bytes=workspace,
    )


@pytest.mark.parametrize("batch", [1, 2, 64, 256])
@pytest.mark.parametrize("capacity", [1024, 8192, 131072])
def test_a_stream_fills_the_device_and_no_more(batch, capacity):
    chosen = plan(batch=batch, kv_capacity=capacity)
    chunks = batch * 8 * -(-capacity // chosen["chunk_tokens"])
    assert chosen["splits"] == 0
    assert chosen["ctas"] == min(3 * SMS, chunks)


def test_full_rows_that_half_fill_the_device_go_to_pairs():
    chosen = plan(batch=8)
    assert (chosen["splits"], chosen["cluster"], chosen["ctas"]) == (2, True, 128)
    assert chosen["token_warps"] == 12  # one CTA an SM, as many warps as its registers allow
    assert chosen["workspace_bytes"] == 0


def test_uneven_lengths_are_never_given_to_pairs():
    assert plan(batch=8, uneven_lengths=True)["splits"] == 0


def test_pairs_fit_their_shared_memory():
    """The CTAs of a pair send each other what they found: too much of it for 128 query heads."""
    assert plan(batch=8, group=64)["cluster"]
    assert not plan(batch=8, group=128)["cluster"]
    assert not plan(batch=8, group=128, num_splits=2)["cluster"]


def test_one_chunk_is_not_split():
    chosen = plan(kv_capacity=64)
    assert (chosen["splits"], chosen["ctas"], chosen["workspace_bytes"]) == (1, 8, 0)


def test_a_small_workspace_means_fewer_ctas_not_an_overrun():
    slot = 4 * 4 * (128 + 2)
    chosen = plan(workspace=20 * slot)
    assert chosen["ctas"] == 10
    assert chosen["workspace_bytes"] == 20 * slot
    assert plan(workspace=16)["splits"] == 1


@pytest.mark.parametrize("num_splits", [1, 2, 3, 8, 133, 1024])
def test_a_fixed_split_depends_on_nothing_but_itself(num_splits):
    layout = ("dim_tile", "head_tile", "slices", "token_warps", "chunk_tokens", "splits", "cluster")
    seen = {
        tuple(plan(num_splits=num_splits, batch=batch, kv_capacity=capacity)[key] for key in layout)
        for batch in (1, 7, 64)
        for capacity in (64, 1000, 8192)
    }
    assert len(seen) == 1
    assert plan(num_splits=num_splits, batch=7)["ctas"] == 7 * 8 * num_splits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [1, 33, 64, 80, 96, 128, 192, 200, 256])
@pytest.mark.parametrize("group", [1, 3, 8, 9, 16, 64, 71, 128, 129, 500])
def test_every_problem_fits_a_cta_and_its_workspace(dtype, head_dim, group):
    for num_splits in (0, 5):
        sizes = dict(dtype=dtype, head_dim=head_dim, group=group, batch=3, kv_capacity=3000)
        chosen = plan(num_splits=num_splits, **sizes)
        assert chosen["dim_tile"] >= head_dim
        assert chosen["slices"] * chosen["head_tile"] >= chosen["block_heads"]
        assert chosen["head_blocks"] * chosen["block_heads"] >= group
        assert chosen["slices"] * chosen["token_warps"] <= 12
        assert chosen["shared_bytes"] <= 227 * 1024
        assert chosen["vector"] == (head_dim * (4 if dtype == "float32" else 2) % 16 == 0)
        shape = shapes.DecodeShape(
            batch=3, q_heads=8 * group, kv_heads=8, capacity=3000, head_dim=head_dim, dtype=dtype
        )
        assert chosen["workspace_bytes"] <= shapes.workspace_bytes(shape, num_splits)
