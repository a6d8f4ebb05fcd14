"""``python -m jax_baracuda.testing.int4_small_calls``: each int4 kernel once, small.

For compute-sanitizer, under which a call takes seconds::

    compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m jax_baracuda.testing.int4_small_calls

Rows of x on both sides of every tile, both dtypes, every kind of group, weights that fill their
tiles and weights that do not. The exit code is 1 where a result is wrong. ``--list`` prints the
cases, ``--only TEXT`` runs those whose name has the text, ``--no-check`` leaves the results
unchecked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_baracuda import int4_matmul
from jax_baracuda.testing import small_calls
from jax_baracuda.testing.compare import Report
from jax_baracuda.testing.int4 import Int4Case, check_int4

ROWS = (0, 1, 8, 9, 16, 17, 33, 64, 65, 129, 257)
# Channels and the group: one tile, ragged ones, many, and enough depth to be shared.
WEIGHTS = ((64, 32), (200, 64), (200, -1), (1152, 128))


def small_cases() -> Iterator[Int4Case]:
    """The calls: every combination of rows, weights and dtypes above."""
    for dtype in ("float16", "bfloat16"):
        for features, group in WEIGHTS:
            for rows in ROWS:
                name = f"{dtype}-{features}-group-{group}-rows-{rows}"
                yield Int4Case(name, "awq_gemm", rows, features, group, dtype)


def _calls() -> Iterator[tuple[str, small_calls.Run]]:
    for case in small_cases():
        yield case.name, functools.partial(_run, case)


def _run(
    case: Int4Case, implementation: small_calls.Implementation, check: bool
) -> Sequence[Report]:
    x, raw = case.inputs()
    call = jax.jit(functools.partial(int4_matmul, implementation=implementation))
    out = np.asarray(call(jnp.asarray(x), raw.convert()))
    return [check_int4(case, x, raw, out)] if check else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 if a result is wrong."""
    return small_calls.main(__doc__, _calls(), arguments)


if __name__ == "__main__":
    sys.exit(main())
