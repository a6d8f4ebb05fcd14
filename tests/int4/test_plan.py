"""The extension's choice among the kernels for Hopper, a host function of it."""

from __future__ import annotations

import pytest

from jax_baracuda._src.int4 import shapes

ffi = pytest.importorskip(
    "jax_baracuda._ffi", reason="this installation has no kernels", exc_type=ImportError
)

SMS = 132
LAYERS = [(4096, 4096), (4096, 14336), (14336, 4096), (8192, 28672)]


def plan(rows: int, ic: int, oc: int, group: int = 128) -> dict[str, int | str]:
    return ffi.int4_plan(rows=rows, in_channels=ic, out_channels=oc, group_size=group, sms=SMS)


def ctas(chosen: dict[str, int | str], rows: int, oc: int) -> int:
    blocks = -(-oc // chosen["channels"]) * -(-rows // chosen["rows"])
    return blocks * chosen["splits"]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_smallest_kernel_ends_where_python_says(layer):
    assert plan(shapes.SMALL_ROWS, *layer) == {"kernel": "small"}
    assert plan(shapes.SMALL_ROWS + 1, *layer)["kernel"] == "medium"
    assert plan(4096, *layer)["kernel"] == "large"


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rows", [9, 16, 32, 64, 128])
def test_one_wave_that_fills_most_of_the_device(rows, layer):
    """Larger clusters than pairs leave SMs over; so would more CTAs than SMs a second wave."""
    chosen = plan(rows, *layer)
    assert chosen["splits"] <= 2
    assert 0.8 * SMS <= ctas(chosen, rows, layer[1]) <= SMS


@pytest.mark.parametrize("layer", LAYERS)
def test_more_rows_are_not_expected_to_take_less_time(layer):
    times = [plan(rows, *layer)["ns"] for rows in (9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 512)]
    assert times == sorted(times)


def test_a_layer_of_one_tile_is_not_split():
    for rows in (9, 64, 300):
        assert plan(rows, 64, 64)["splits"] == 1
