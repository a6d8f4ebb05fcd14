"""``python -m jax_baracuda.testing.cache_small_calls``: every append and rotation once, small.

For compute-sanitizer, under which a call takes seconds::

    compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m jax_baracuda.testing.cache_small_calls

The exit code is 1 where a result is wrong. ``--list`` prints the cases, ``--only TEXT`` runs those
whose name has the text, ``--no-check`` leaves the results unchecked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from jax_baracuda.testing import cache
from jax_baracuda.testing.cache_cases import (
    APPEND_CASES,
    ROPE_CASES,
    AppendCase,
    RopeCase,
    make_append_inputs,
)
from jax_baracuda.testing.compare import Report

Run = Callable[[cache.Implementation, bool], list[Report]]


def small_calls() -> Iterator[tuple[str, Run]]:
    """(name, run): ``run(implementation, check)`` makes the call and returns its reports."""
    for case in APPEND_CASES:
        yield f"{case.function} {case.name}", _append(case)
    for rotation in ROPE_CASES:
        yield f"apply_rope {rotation.name}", _rope(rotation)


def _append(case: AppendCase) -> Run:
    def run(implementation: cache.Implementation, check: bool) -> list[Report]:
        inputs = make_append_inputs(case)
        results = cache.run_append(case, inputs, implementation=implementation)
        return cache.check_append(case, inputs, results) if check else []

    return run


def _rope(case: RopeCase) -> Run:
    def run(implementation: cache.Implementation, check: bool) -> list[Report]:
        out = cache.run_rope(case, implementation=implementation)
        return [cache.check_rope(case, out)] if check else []

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has the text")
    parser.add_argument("--no-check", action="store_true", help="do not look at the results")
    parser.add_argument("--implementation", choices=("cuda", "reference"), default="cuda")
    options = parser.parse_args(arguments)
    wrong = 0
    for name, run in small_calls():
        if options.only not in name:
            continue
        print(name, flush=True)
        if options.list:
            continue
        for report in run(options.implementation, not options.no_check):
            if not report.ok:
                wrong += 1
                print(f"  {report.message}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
