"""The command line of ``jax_baracuda.testing.*_small_calls``: calls for compute-sanitizer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from jax_baracuda.testing.compare import Report

Implementation = Literal["cuda", "reference"]

# (implementation, check): makes the call, and returns its reports if they are wanted.
Run = Callable[[Implementation, bool], Sequence[Report]]


def main(
    description: str | None, calls: Iterable[tuple[str, Run]], arguments: Sequence[str] | None
) -> int:
    """Makes the calls by name that the arguments of the command ask for.

    Returns:
      The exit code: 1 if a result is wrong.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name has one of these"
    )
    parser.add_argument("--no-check", action="store_true", help="do not look at the results")
    parser.add_argument("--implementation", choices=("cuda", "reference"), default="cuda")
    options = parser.parse_args(arguments)
    wrong = 0
    for name, run in calls:
        if not any(text in name for text in options.only):
            continue
        print(name, flush=True)
        if options.list:
            continue
        for report in run(options.implementation, not options.no_check):
            if not report.ok:
                wrong += 1
                print(f"  {report.message}", flush=True)
    return int(wrong > 0)
