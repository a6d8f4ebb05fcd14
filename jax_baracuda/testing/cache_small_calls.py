"""``python -m jax_baracuda.testing.cache_small_calls``: every append and rotation once, small.

For compute-sanitizer, under which a call takes seconds::

    compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m jax_baracuda.testing.cache_small_calls

The exit code is 1 where a result is wrong. ``--list`` prints the cases, ``--only TEXT`` runs those
whose name has the text, ``--no-check`` leaves the results unchecked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence

from jax_baracuda.testing import cache, small_calls
from jax_baracuda.testing.cache_cases import (
    APPEND_CASES,
    ROPE_CASES,
    AppendCase,
    RopeCase,
    make_append_inputs,
)
from jax_baracuda.testing.compare import Report


def _calls() -> Iterator[tuple[str, small_calls.Run]]:
    for case in APPEND_CASES:
        yield f"{case.function} {case.name}", functools.partial(_append, case)
    for rotation in ROPE_CASES:
        yield f"apply_rope {rotation.name}", functools.partial(_rope, rotation)


def _append(
    case: AppendCase, implementation: cache.Implementation, check: bool
) -> Sequence[Report]:
    inputs = make_append_inputs(case)
    results = cache.run_append(case, inputs, implementation=implementation)
    return cache.check_append(case, inputs, results) if check else []


def _rope(case: RopeCase, implementation: cache.Implementation, check: bool) -> Sequence[Report]:
    out = cache.run_rope(case, implementation=implementation)
    return [cache.check_rope(case, out)] if check else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 if a result is wrong."""
    return small_calls.main(__doc__, _calls(), arguments)


if __name__ == "__main__":
    sys.exit(main())
