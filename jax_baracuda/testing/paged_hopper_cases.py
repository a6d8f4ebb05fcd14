"""Cases of paged_prefill for the kernel of Hopper GPUs: its head dimensions, boxes, and tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from jax_baracuda.testing.paged_cases import (
    LAYOUTS,
    PREFILL_OPTIONS,
    PagedPrefillCase,
    Pages,
    prefill_case,
)

# Boxes of 16, 32, 64 and 128 rows in blocks of 128 keys; blocks of 112 and 80 keys have boxes of 16
# rows but for pages of 112 and 160.
PAGE_SIZES = (16, 32, 48, 64, 112, 128, 160, 256)
# Compiled ones, and some between them.
HEAD_DIMS = (8, 64, 72, 96, 128, 136, 192, 256)
GROUPS = (1, 2, 4, 5, 7, 8, 16, 20, 64, 130)

# A decode, chunks within a tile and over several, no rows, no keys, fewer keys than rows, histories
# that end before, at and after the end of a page and of a block.
_ROWS = (1, 40, 300, 0, 9, 30, 17, 1, 3, 128, 129, 1)
_KEYS = (93, 130, 1100, 50, 0, 12, 400, 256, 257, 128, 255, 1)


def _cases() -> tuple[PagedPrefillCase, ...]:
    cases: list[PagedPrefillCase] = []

    def add(
        name: str,
        turn: int,
        page_size: int,
        rows: tuple[int, ...],
        keys: tuple[int, ...],
        **fields: Any,
    ) -> None:
        pages = Pages(
            page_size, LAYOUTS[turn % 2], first_entry=turn % 3, opened=turn % 4 > 2, spare_pages=1
        )
        around = {"before": 3 * (turn % 2), "after": 5 * (turn % 3)}
        fields = {"dtype": ("bfloat16", "float16")[turn // 2 % 2], **around, **fields}
        cases.append(prefill_case(f"{name}-page-{page_size}", pages, rows, keys, **fields))

    for i, head_dim in enumerate(HEAD_DIMS):
        for j in range(4):
            page_size, turn = PAGE_SIZES[(3 * i + 2 * j) % len(PAGE_SIZES)], i + j + i // 2
            group = (1, 2, 4, 7)[turn % 4]
            add(
                f"{head_dim}",
                *(turn, page_size, _ROWS, _KEYS),
                head_dim=head_dim,
                group=group,
                kv_heads=1 + turn % 2,
            )
    for i, (name, options) in enumerate(PREFILL_OPTIONS.items()):
        for j, head_dim in enumerate(((64, 192), (128, 256))[i % 2]):
            page_size = PAGE_SIZES[(3 * i + j) % len(PAGE_SIZES)]
            fields = {"group": 3 if j % 2 else 4, **options}
            add(f"{name}-{head_dim}", i + j, page_size, _ROWS, _KEYS, head_dim=head_dim, **fields)
    for i, group in enumerate(GROUPS):
        window = {"local_window_size": (40, 0), "sink_tokens": 3, "sinks": True}
        for page_size, options in ((16, {}), (64, window)):
            fields = {"group": group, "kv_heads": 2 if group < 20 else 1, **options}
            sizes = (1, 5, 0, 70, 33), (300, 64, 9, 70, 161)
            add(f"group-{group}", i, page_size, *sizes, head_dim=(64, 128)[i % 2], **fields)

    # More requests than a warp adds up at once: rows and keys of a few of them.
    rng = np.random.default_rng(0)
    for count in (31, 32, 33, 100):
        rows = tuple(int(n) for n in rng.choice([0, 0, 1, 1, 2, 9, 140], count))
        keys = tuple(int(n) for n in np.maximum(np.asarray(rows) + rng.integers(-3, 300, count), 0))
        add(f"requests-{count}", count, 16, rows, keys, head_dim=128, group=4)
    add("only-empty-requests", 1, 16, (0,) * 70, (20,) * 70, head_dim=128)
    add("a-request-behind-empty-ones", 2, 16, (*[0] * 64, 5), (*[16] * 64, 99), head_dim=128)
    add("no-requests", 1, 16, (), (), after=9)
    add("short-max", 3, 64, (300, 200), (300, 900), max_seqlens=(8, 8), head_dim=128)
    add("more-tiles-than-SMs", 0, 16, (700, 650), (3000, 900), head_dim=128, kv_heads=8, group=2)
    return tuple(cases)


HOPPER_PREFILL_CASES = _cases()
