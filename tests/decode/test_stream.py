"""Where the CTAs of a stream begin: by one look at a request, at 32 of them, or at more."""

from __future__ import annotations

import numpy as np
import pytest

from jax_baracuda.testing import DecodeCase, check_decode, make_inputs, run_decode
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, run_paged
from jax_baracuda.testing.paged_cases import PagedDecodeCase, Pages

pytestmark = pytest.mark.gpu

WINDOW = {"local_window_size": (90, 0), "sink_tokens": 3}


def stream(batch: int, options: dict[str, object]) -> DecodeCase:
    """Lengths between nothing and a cache, and a long request among them."""
    rng = np.random.default_rng(batch)
    lengths = rng.integers(0, 300, batch)
    lengths[rng.integers(0, batch)] = 2000
    lengths = tuple(int(n) for n in lengths)
    return DecodeCase("stream", batch, 2, 4, 2000, 64, lengths=lengths, **options)


@pytest.mark.parametrize("options", [{}, WINDOW], ids=["all", "window"])
@pytest.mark.parametrize("batch", [1, 2, 31, 32, 33, 70])
def test_lengths(batch, options):
    case = stream(batch, options)
    inputs = make_inputs(case)
    for report in check_decode(case, inputs, *run_decode(case, inputs, implementation="cuda")):
        report.check()


@pytest.mark.parametrize("options", [{}, WINDOW], ids=["all", "window"])
@pytest.mark.parametrize("batch", [1, 2, 31, 32, 33, 70])
def test_pages(batch, options):
    case = PagedDecodeCase(stream(batch, options), Pages(16, first_entry=2))
    inputs = make_paged_inputs(case)
    for report in check_paged(case, inputs, *run_paged(case, inputs, implementation="cuda")):
        report.check()


@pytest.mark.parametrize("batch", [1, 3, 70])
def test_full_caches_behind_a_window(batch):
    case = DecodeCase("full", batch, 2, 4, 700, 64, **WINDOW)
    inputs = make_inputs(case)
    for report in check_decode(case, inputs, *run_decode(case, inputs, implementation="cuda")):
        report.check()
