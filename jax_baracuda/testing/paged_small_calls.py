"""``python -m jax_baracuda.testing.paged_small_calls``: each paged kernel once, small.

For compute-sanitizer, under which a call takes seconds::

    compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m jax_baracuda.testing.paged_small_calls

Both ops, every dtype and every padded head dimension, without options and with all of them, pages
of one key and of several, both layouts, and tables of nonsense. The exit code is 1 where a result
is wrong. ``--list`` prints the cases, ``--only TEXT`` runs those whose name has the text,
``--no-check`` leaves the results unchecked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_baracuda.testing import small_calls
from jax_baracuda.testing.attention_cases import AttentionCase
from jax_baracuda.testing.cases import DecodeCase
from jax_baracuda.testing.compare import Report
from jax_baracuda.testing.paged import (
    Implementation,
    PagedCase,
    check_paged,
    make_paged_inputs,
    paged_arrays,
    paged_function,
    run_paged,
)
from jax_baracuda.testing.paged_cases import PagedDecodeCase, PagedPrefillCase, Pages

_EVERYTHING: dict[str, Any] = {
    "local_window_size": (40, 0),
    "sink_tokens": 3,
    "sinks": True,
    "alibi_slopes": "head",
    "logits_soft_cap": 8.0,
}
_PAGES = (Pages(16), Pages(1, "NHD"), Pages(5, first_entry=2, opened=True), Pages(64, "NHD"))


def small_cases() -> Iterator[PagedCase]:
    """The calls with a right result: dtypes, head dimensions, options and pages."""
    for i, dtype in enumerate(("bfloat16", "float16", "float32")):
        for j, head_dim in enumerate((24, 64, 100, 128, 192, 256)):
            for k, (name, options) in enumerate({"plain": {}, "everything": _EVERYTHING}.items()):
                pages = _PAGES[(i + j + 2 * k) % len(_PAGES)]
                name = f"{dtype}-{head_dim}-{name}-page-{pages.page_size}"
                sizes: dict[str, Any] = {"dtype": dtype, "head_dim": head_dim, "kv_heads": 1}
                for splits in (None, 3):
                    decode = DecodeCase(
                        f"paged_decode-{name}-splits-{splits}",
                        batch=4,
                        capacity=150,
                        lengths=(150, 0, 1, 67),
                        group=(4, 9)[j % 2],
                        num_splits=splits,
                        **(sizes | options),
                    )
                    yield PagedDecodeCase(decode, pages)
                prefill = AttentionCase(
                    f"paged_prefill-{name}",
                    cu_seqlens_q=(2, 30, 31, 31, 140),
                    cu_seqlens_k=(0, 66, 160, 170, 170),
                    query_length=150,
                    key_length=170,
                    is_causal=j % 3 > 0,
                    group=(2, 5)[j % 2],
                    **(sizes | options),
                )
                yield PagedPrefillCase(prefill, pages)


def _calls() -> Iterator[tuple[str, small_calls.Run]]:
    for case in small_cases():
        yield case.name, functools.partial(_run, case)
    for case in small_cases():
        if "-64-plain" in case.name:
            yield f"{case.name}-nonsense", functools.partial(_run_nonsense, case)


def _run(case: PagedCase, implementation: Implementation, check: bool) -> Sequence[Report]:
    inputs = make_paged_inputs(case)
    results = run_paged(case, inputs, implementation=implementation)
    return check_paged(case, inputs, *results) if check else []


def _run_nonsense(case: PagedCase, implementation: Implementation, check: bool) -> Sequence[Report]:
    """Integers of any value: nothing is to be right but the addresses that are read."""
    del check
    arrays = paged_arrays(case, make_paged_inputs(case))
    pool = np.array([-(2**31), 2**31 - 1, -1, 0, 1, 7, len(arrays["page_indices"]), 150], np.int32)
    call = jax.jit(paged_function(case, implementation=implementation))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        drawn = {
            name: rng.choice(pool, array.shape) if array.dtype == np.int32 else array
            for name, array in arrays.items()
        }
        jax.block_until_ready(call(**jax.device_put(drawn)))
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 if a result is wrong."""
    return small_calls.main(__doc__, _calls(), arguments)


if __name__ == "__main__":
    sys.exit(main())
