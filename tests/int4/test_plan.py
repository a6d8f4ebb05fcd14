"""The extension's choice among the kernels on Hopper, a host function of it."""

from __future__ import annotations

import pytest

from jax_baracuda._src.int4 import shapes

ffi = pytest.importorskip(
    "jax_baracuda._ffi", reason="this installation has no kernels", exc_type=ImportError
)

SMS = 132
LAYERS = [(4096, 4096), (4096, 14336), (14336, 4096), (8192, 28672)]
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
LARGE = "large 128x256 d1 s1"
# The fastest of all tiles and splits on an H200, or within 4% of it (docs/int4.md): channels x rows
# of a tile, warps (warpgroups) that share the depth, CTAs that do.
MEASURED = {
    (8192, 28672): (
        *("small 256x8 d4 s1", "small 256x8 d4 s1", "medium 448x16 d1 s2", "medium 448x32 d1 s2"),
        *("medium 448x64 d1 s2", "medium 256x128 d1 s1", LARGE, LARGE, LARGE, LARGE),
    ),
    (4096, 4096): (
        *("small 32x8 d16 s1", "small 32x8 d16 s1", "small 64x16 d8 s2", "medium 64x32 d8 s2"),
        *("medium 64x32 d8 s1", "medium 128x64 d2 s2", "medium 128x128 d2 s2"),
        *("medium 128x128 d2 s1", LARGE, LARGE),
    ),
    (4096, 14336): (
        *("small 64x8 d4 s1", "small 64x8 d4 s1", "small 64x16 d4 s1", "medium 128x32 d4 s1"),
        *("medium 128x64 d2 s1", "medium 128x128 d2 s1", "medium 256x128 d1 s1"),
        *(LARGE, LARGE, LARGE),
    ),
    (14336, 4096): (
        *("small 32x8 d16 s1", "small 32x8 d16 s1", "small 64x16 d8 s2", "medium 128x32 d4 s4"),
        *("medium 128x64 d2 s4", "medium 128x128 d2 s4", "medium 128x128 d2 s2"),
        *("medium 256x128 d1 s2", LARGE, LARGE),
    ),
    (4096, 11008): (
        *("small 64x8 d4 s2", "small 64x8 d4 s2", "small 64x16 d4 s2", "medium 128x32 d4 s1"),
        *("medium 128x64 d2 s1", "medium 128x128 d2 s1", LARGE),
        *(LARGE, LARGE, LARGE),
    ),
    (4096, 1024): (
        *("small 64x8 d8 s4", "small 64x8 d8 s4", "small 64x16 d8 s4", "small 128x32 d4 s8"),
        *("medium 128x64 d2 s8", "medium 64x32 d8 s2", "medium 128x64 d2 s4"),
        *("medium 128x128 d2 s4", "large 128x128 d1 s2", LARGE),
    ),
    (5120, 13824): (
        *("small 64x8 d4 s1", "small 64x8 d4 s1", "small 64x16 d4 s1", "medium 128x32 d4 s1"),
        *("medium 128x64 d2 s1", "medium 128x128 d2 s1", "medium 256x128 d1 s1"),
        *(LARGE, LARGE, LARGE),
    ),
    (8192, 8192): (
        *("small 64x8 d8 s1", "small 64x8 d8 s1", "small 64x16 d8 s1", "medium 128x32 d4 s2"),
        *("medium 128x64 d2 s2", "medium 128x128 d2 s2", "medium 256x128 d1 s2"),
        *("medium 256x128 d1 s1", LARGE, LARGE),
    ),
}


def plan(rows: int, ic: int, oc: int, group: int = 128) -> dict[str, int | str]:
    return ffi.int4_plan(rows=rows, in_channels=ic, out_channels=oc, group_size=group, sms=SMS)


def spell(chosen: dict[str, int | str]) -> str:
    return "{kernel} {channels}x{rows} d{depth_groups} s{splits}".format(**chosen)


def ctas(chosen: dict[str, int | str], rows: int, oc: int) -> int:
    blocks = -(-oc // chosen["channels"]) * -(-rows // chosen["rows"])
    return blocks * chosen["splits"]


@pytest.mark.parametrize("layer", MEASURED)
def test_what_was_measured_to_be_fastest(layer):
    assert tuple(spell(plan(rows, *layer)) for rows in ROWS) == MEASURED[layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_smallest_kernel_ends_where_python_says(layer):
    many_channels = layer == (8192, 28672)  # which the others take from 9 rows on
    assert plan(8 if many_channels else shapes.SMALL_ROWS, *layer)["kernel"] == "small"
    assert plan(9 if many_channels else shapes.SMALL_ROWS + 1, *layer)["kernel"] == "medium"
    assert plan(4096, *layer)["kernel"] == "large"


def test_groups_of_several_scales_a_stage_leave_the_smallest_kernel_earlier():
    assert plan(16, 8192, 28672, 64)["kernel"] == "medium"
    assert plan(16, 8192, 28672, 32)["kernel"] == "medium"


def test_a_layer_of_few_channels_stays_with_the_smallest_kernel():
    assert plan(32, 4096, 1024)["kernel"] == "small"
    assert plan(33, 4096, 1024)["kernel"] == "medium"


@pytest.mark.parametrize("layer", MEASURED)
def test_splits_run_all_at_once(layer):
    """A second wave of clusters is slower than no splits at all: 550 us for 376 was measured."""
    for rows in range(17, 2100, 9):
        chosen = plan(rows, *layer)
        if chosen["splits"] > 1 and chosen["kernel"] != "small":
            assert ctas(chosen, rows, layer[1]) <= SMS


@pytest.mark.parametrize("layer", LAYERS)
def test_more_rows_are_not_expected_to_take_less_time(layer):
    times = [plan(rows, *layer)["ns"] for rows in ROWS]
    assert times == sorted(times)


def test_a_layer_of_one_tile_is_not_split():
    for rows in (1, 9, 64, 300):
        assert plan(rows, 64, 64)["splits"] == 1
