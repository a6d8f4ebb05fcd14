"""The kernel's own choice of layout and split, a host function of the extension."""

from __future__ import annotations

import pytest

from jax_baracuda._src.decode import shapes

ffi = pytest.importorskip(
    "jax_baracuda._ffi", reason="this installation has no kernels", exc_type=ImportError
)

SMS = 132
SM_SHARED = 228 * 1024
BY_EIGHT = 3 * SMS // 8 * 8  # CTAs that take the rows of a request, eight heads, side by side


def plan(
    *, num_splits: int = 0, workspace: int | None = None, hopper: bool = False, **sizes: object
) -> dict[str, int]:
    """decode_plan on an H200-like device, with the workspace that the primitive would give; if
    `hopper`, with its rings and wide clusters and for keys in the HND layout."""
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
        adjacent_rows=hopper,
        wide_clusters=16 if hopper else 0,
        ring_shared=SM_SHARED if hopper else 0,
    )


@pytest.mark.parametrize("batch", [1, 2, 64, 256])
@pytest.mark.parametrize("capacity", [1024, 8192, 131072])
def test_a_stream_fills_the_device_and_no_more(batch, capacity):
    chosen = plan(batch=batch, kv_capacity=capacity, uneven_lengths=batch > 1)
    chunks = batch * 8 * -(-capacity // chosen["chunk_tokens"])
    assert chosen["splits"] == 0
    side_by_side = batch > 1 and batch * 8 * capacity * 512 <= 1 << 32
    assert chosen["ctas"] == min(BY_EIGHT if side_by_side else 3 * SMS, chunks)
    assert chosen["lanes"] == (8 if side_by_side else 1)


@pytest.mark.parametrize(
    ("sizes", "warps", "stages", "ctas"),
    [
        (dict(batch=16, kv_capacity=1024), 8, 2, 128),
        (dict(batch=64, kv_capacity=2048), 8, 2, 128),  # 537 MB
        (dict(batch=48, kv_capacity=1024), 8, 2, 128),  # three rows a CTA
        (dict(batch=64, kv_capacity=8192), 12, 0, 128),  # 2 GB of long rows
        (dict(batch=256, kv_capacity=1024), 6, 0, 256),  # 1 GB of short rows
        (dict(batch=64, kv_capacity=1024, head_dim=64), 4, 0, 256),
        (dict(batch=16, kv_capacity=1024, head_dim=64), 12, 0, 128),
        (dict(batch=64, kv_capacity=1024, head_dim=96), 4, 0, 256),
    ],
)
def test_rows_of_one_length_are_not_split_where_every_cta_gets_as_many(sizes, warps, stages, ctas):
    chosen = plan(hopper=True, **sizes)
    assert (chosen["splits"], chosen["token_warps"]) == (0, warps)
    assert (chosen["ring_stages"], chosen["ctas"]) == (stages, ctas)
    assert chosen["workspace_bytes"] == 0


@pytest.mark.parametrize(
    "sizes",
    [
        dict(batch=64, kv_capacity=1024, uneven_lengths=True),
        dict(batch=20, kv_capacity=1024),  # 160 rows would leave 26 or 104 places idle
        dict(batch=64, kv_capacity=1024, dtype="float32"),
        dict(batch=64, kv_capacity=1024, head_dim=256),
        dict(batch=64, kv_capacity=1024, group=16),
    ],
)
def test_other_rows_are_split_as_the_stream_needs(sizes):
    chosen = plan(hopper=True, **sizes)
    assert chosen["splits"] == 0
    assert chosen["workspace_bytes"] > 0


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


@pytest.mark.parametrize("capacity", [512, 1024, 2048])
def test_short_rows_of_one_request_go_to_wide_clusters(capacity):
    chosen = plan(kv_capacity=capacity, hopper=True)
    assert (chosen["splits"], chosen["cluster"], chosen["ctas"]) == (8, True, 64)
    assert (chosen["token_warps"], chosen["ring_stages"]) == (8, 3)
    assert chosen["workspace_bytes"] == 0


def test_wide_clusters_without_rings_are_for_the_shortest_rows():
    sizes = dict(hopper=True, group=16)  # too many query heads for the kernel with rings
    chosen = plan(kv_capacity=1024, **sizes)
    assert (chosen["splits"], chosen["cluster"], chosen["ring_stages"]) == (8, True, 0)
    assert chosen["token_warps"] == 4 // chosen["slices"]
    assert plan(kv_capacity=2048, **sizes)["splits"] == 0


def test_wide_clusters_leave_few_multiprocessors_idle_and_all_run_at_once():
    assert not plan(kv_heads=4, kv_capacity=1024, hopper=True)["cluster"]
    assert not plan(batch=3, kv_capacity=1024, hopper=True)["cluster"]
    assert not plan(batch=2, kv_capacity=1024, uneven_lengths=True, hopper=True)["cluster"]
    assert not plan(kv_capacity=4096, hopper=True)["cluster"]


@pytest.mark.parametrize(
    ("sizes", "warps", "stages", "ctas_per_sm"),
    [
        (dict(kv_capacity=3000), 4, 0, None),  # 12 MB
        (dict(kv_capacity=4096), 4, 2, 2),
        (dict(kv_capacity=8192), 4, 2, 2),  # 34 MB
        (dict(kv_capacity=8192, kv_heads=32, group=1), 4, 2, None),
        (dict(kv_capacity=65536), 4, 2, 2),  # 268 MB
        (dict(kv_capacity=131072), 8, 3, None),
        (dict(kv_capacity=262144), 4, 0, 3),  # 1 GB
        (dict(kv_capacity=8192, head_dim=64), 4, 2, 2),  # 17 MB
        (dict(kv_capacity=131072, head_dim=64), 4, 2, 2),
        (dict(kv_capacity=262144, head_dim=64), 4, 0, 3),
        (dict(kv_capacity=8192, head_dim=256), 4, 3, None),  # 67 MB
        (dict(kv_capacity=16384, head_dim=256), 4, 0, None),
        (dict(kv_capacity=8192, dtype="float32"), 4, 0, 3),
        (dict(kv_capacity=8192, head_dim=96), 4, 0, 3),
        (dict(kv_capacity=8192, group=9), 4, 0, None),
        (dict(kv_capacity=8192, num_splits=3), 4, 0, None),
    ],
)
def test_a_stream_reads_through_rings_where_that_is_faster(sizes, warps, stages, ctas_per_sm):
    chosen = plan(hopper=True, **sizes)
    assert (chosen["token_warps"], chosen["ring_stages"]) == (warps, stages)
    if ctas_per_sm is not None:
        assert (chosen["splits"], chosen["ctas"]) == (0, ctas_per_sm * SMS)
        assert (chosen["shared_bytes"] + 1024) * ctas_per_sm <= SM_SHARED


@pytest.mark.parametrize(
    ("sizes", "stages", "even_ctas"),
    [
        (dict(kv_capacity=1024, batch=8), 2, 256),  # where lengths are even, four a row and not 4.1
        (dict(kv_capacity=16384, batch=8), 2, 256),  # 537 MB, but few rows
        (dict(kv_capacity=32768, batch=8), 0, BY_EIGHT),
        (dict(kv_capacity=1024, batch=20), 2, 2 * SMS),  # 160 rows
        (dict(kv_capacity=1024, batch=32), 2, 256),  # a row each
        (dict(kv_capacity=512, batch=64), 2, 2 * SMS),  # more requests than are looked at
        (dict(kv_capacity=2048, batch=32), 0, BY_EIGHT),  # 268 MB of many rows
        (dict(kv_capacity=8192, batch=8, head_dim=64), 0, BY_EIGHT),
    ],
)
def test_where_uneven_lengths_are_read_through_rings(sizes, stages, even_ctas):
    chosen = plan(hopper=True, uneven_lengths=True, **sizes)
    assert (chosen["splits"], chosen["token_warps"]) == (0, 4)
    assert chosen["ring_stages"] == stages
    assert (chosen["ctas"], chosen["even_ctas"]) == (2 * SMS if stages else BY_EIGHT, even_ctas)


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("capacity", [1024, 8192, 32768])
def test_rings_fit_their_shared_memory_or_are_not_used(capacity, head_dim, group):
    chosen = plan(kv_capacity=capacity, head_dim=head_dim, group=group, hopper=True)
    assert chosen["shared_bytes"] <= 227 * 1024


def paged_plan(tokens: int, *, page_size: int = 16, **sizes: object) -> dict[str, int]:
    """The plan of a paged store whose table names so many tokens in all."""
    batch = sizes.get("batch", 1)
    return plan(
        hopper=True,
        paged=True,
        kv_capacity=tokens,
        table_entries=tokens // page_size,
        uneven_lengths=batch > 1,
        **sizes,
    )


@pytest.mark.parametrize("tokens", [1024, 2048, 8192, 32768])
def test_one_request_in_pages_is_read_as_a_contiguous_one(tokens):
    paged, contiguous = paged_plan(tokens), plan(kv_capacity=tokens, hopper=True)
    for name in ("token_warps", "ring_stages", "splits", "cluster", "ctas"):
        assert paged[name] == contiguous[name], name


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 7, 8, 32, 100, 140])
def test_rows_of_a_request_are_read_side_by_side_where_few_places_stay_empty(kv_heads):
    chosen = paged_plan(64 * 16384, batch=64, kv_heads=kv_heads)
    places = (2 if 64 * kv_heads >= 2 * SMS else 3) * SMS
    fits = places // kv_heads * kv_heads * 16 >= places * 15
    assert chosen["lanes"] == (kv_heads if fits else 1)
    assert chosen["ctas"] == (places // kv_heads * kv_heads if fits else places)


@pytest.mark.parametrize(
    ("tokens", "batch", "warps", "stages", "ctas"),
    [
        (4096, 1, 8, 3, 64),  # wide clusters, of which there are none for contiguous rows as long
        (4112, 1, 4, 2, 2 * SMS),
        (32768, 1, 4, 2, 2 * SMS),  # 134 MB
        (36000, 1, 4, 0, BY_EIGHT),
        (8 * 1024, 8, 4, 2, 2 * SMS),  # 34 MB, whoever has them
        (8 * 4096, 8, 4, 2, 2 * SMS),
        (8 * 8192, 8, 4, 0, BY_EIGHT),
        (16 * 1024, 16, 4, 2, 2 * SMS),  # rows are many, but not too short
        (32 * 1024, 32, 4, 2, 256),  # a row each, if they are even
        (8 * 1024, 9, 4, 0, BY_EIGHT),  # many and few bytes
        (64 * 400, 64, 6, 0, 256),  # many and short
        (64 * 1024, 64, 4, 2, 256),
        (64 * 2048, 64, 6, 0, 2 * SMS),
    ],
)
def test_where_pages_are_read_through_rings(tokens, batch, warps, stages, ctas):
    chosen = paged_plan(tokens, batch=batch)
    assert (chosen["token_warps"], chosen["ring_stages"]) == (warps, stages)
    assert chosen["ctas"] == ctas


def test_pages_of_even_requests_are_not_split_where_every_cta_gets_as_many_rows():
    for batch in (32, 64):
        assert paged_plan(batch * 1024, batch=batch)["ctas"] == 256
    assert paged_plan(8 * 1024, batch=8)["ctas"] == 2 * SMS
    assert paged_plan(256 * 1024, batch=256)["ctas"] == 2 * SMS  # 1 GB: a split more matters less


def test_small_page_tables_are_brought_to_shared_memory():
    for tokens in (1024, 2048, 4096):
        assert paged_plan(tokens)["table_offset"] > 0, tokens
    assert not paged_plan(8192)["table_offset"]  # not of a wide cluster
    assert not paged_plan(2048, page_size=2)["table_offset"]  # 1024 entries
    assert plan(kv_capacity=8192, hopper=True)["table_offset"] == 0


@pytest.mark.parametrize(
    ("sizes", "warps", "stages"),
    [
        (dict(kv_capacity=1024), 8, 2),
        (dict(kv_capacity=2048), 8, 3),
        (dict(kv_capacity=32768), 8, 3),  # 1 GB
        (dict(kv_capacity=65536), 12, 0),
        (dict(kv_capacity=1024, head_dim=64), 12, 0),
        (dict(kv_capacity=4096, kv_heads=7), 12, 0),  # 112 CTAs
    ],
)
def test_pairs_read_through_rings_where_that_is_faster(sizes, warps, stages):
    chosen = plan(hopper=True, batch=8, **sizes)
    assert (chosen["splits"], chosen["cluster"]) == (2, True)
    assert (chosen["token_warps"], chosen["ring_stages"]) == (warps, stages)


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
