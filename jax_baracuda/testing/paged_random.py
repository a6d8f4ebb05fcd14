"""Hypothesis strategies of small random paged cases over every option."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from jax_baracuda.testing.attention_cases import AttentionCase
from jax_baracuda.testing.cases import decode_cases
from jax_baracuda.testing.paged_cases import (
    DTYPES,
    LAYOUTS,
    PagedDecodeCase,
    PagedPrefillCase,
    Pages,
)


def random_pages() -> st.SearchStrategy[Pages]:
    """A hypothesis strategy of stores and tables."""
    return st.builds(
        Pages,
        page_size=st.integers(1, 70),
        kv_layout=st.sampled_from(LAYOUTS),
        spare_pages=st.integers(0, 3),
        first_entry=st.integers(0, 3),
        unused_entries=st.integers(0, 3),
        opened=st.booleans(),
    )


def paged_decode_cases() -> st.SearchStrategy[PagedDecodeCase]:
    """A hypothesis strategy of small random cases over every option."""
    return st.builds(PagedDecodeCase, decode_cases(), random_pages())


def paged_prefill_cases() -> st.SearchStrategy[PagedPrefillCase]:
    """A hypothesis strategy of small random cases over every option."""

    @st.composite
    def build(draw: st.DrawFn) -> PagedPrefillCase:
        requests = draw(st.integers(1, 5))
        rows, keys = ([draw(st.integers(0, most)) for _ in range(requests)] for most in (60, 150))
        bounds = [int(n) for n in draw(st.integers(0, 4)) + np.cumsum([0, *rows])]
        side = st.none() | st.integers(0, 160)
        call = AttentionCase(
            name="hypothesis",
            cu_seqlens_q=tuple(bounds),
            cu_seqlens_k=tuple(int(n) for n in np.cumsum([0, *keys])),
            query_length=bounds[-1] + draw(st.integers(0, 4)),
            key_length=sum(keys),
            max_seqlens=(draw(st.integers(0, 70)), 150),
            kv_heads=draw(st.integers(1, 2)),
            group=draw(st.integers(1, 9)),
            head_dim=draw(st.integers(1, 256)),
            dtype=draw(st.sampled_from(DTYPES)),
            is_causal=draw(st.booleans()),
            scale=draw(st.none() | st.floats(-0.5, 0.5, width=32)),
            local_window_size=draw(st.none() | st.tuples(side, side)),
            sink_tokens=draw(st.integers(0, 70)),
            sinks=draw(st.booleans()),
            alibi_slopes=draw(st.sampled_from((None, "head", "batch"))),
            logits_soft_cap=draw(st.none() | st.floats(1, 50, width=32)),
        )
        return PagedPrefillCase(call, draw(random_pages()))

    return build()
