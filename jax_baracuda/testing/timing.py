"""GPU times that leave the dispatch of a program out.

Two methods. ``time_chained`` times programs of many calls by the wall clock: each call's query is
the output of the call before it, as in a model, so the calls run one after another and none can be
merged or dropped; the caches rotate, so that none is still in the L2 cache when its turn comes
again. ``time_carried`` and ``time_program`` do so for programs of other forms. ``kernel_times``
reads the durations of the kernels from a profiler trace.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Command buffers turn a program's calls into one CUDA graph: a launch then costs next to nothing.
# At other addresses than in the run before it would be made anew, at 10 us a call: results take the
# place of those before.
COMMAND_BUFFER_FLAG = "--xla_gpu_graph_min_graph_size=1"
# Where calls do not depend on each other: a graph must not run them side by side.
IN_ORDER_FLAG = "--xla_gpu_command_buffer_scheduling_mode=SERIALIZE"

Op = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    Attributes:
      ms: the median over the samples.
      fastest: the smallest sample.
      slowest: the largest sample.
      calls: how many calls one program makes.
      programs: how many programs one sample runs.
    """

    ms: float
    fastest: float
    slowest: float
    calls: int
    programs: int


def add_xla_flags(*flags: str) -> None:
    """Appends flags to XLA_FLAGS, before jax starts its backend; flags given by the user win."""
    given = os.environ.get("XLA_FLAGS", "")
    names = {flag.split("=")[0] for flag in given.split()}
    extra = [flag for flag in flags if flag.split("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join([given, *extra]).strip()


def rotation(bytes_per_call: int, *, total: int = 1 << 30, most: int = 64) -> int:
    """How many sets of caches to rotate so that together they are far larger than any L2 cache."""
    return max(1, min(most, -(-total // max(1, bytes_per_call))))


def chain(op: Op, calls: int) -> Callable[[jax.Array, Sequence[Any]], jax.Array]:
    """A program that applies ``op(query, *caches[i])`` ``calls`` times, each on the last output."""

    def program(query: jax.Array, caches: Sequence[Any]) -> jax.Array:
        for index in range(calls):
            operands = caches[index % len(caches)]
            if calls > len(caches):
                # A cache that comes again must not be converted or transposed once for all calls.
                query, operands = jax.lax.optimization_barrier((query, operands))
            query = op(query, *operands)
        return query

    return program


def compile_chain(op: Op, query: Any, caches: Sequence[Any], calls: int | None = None) -> Any:
    """Compiles ``chain``; the arguments may be arrays or jax.ShapeDtypeStruct."""
    calls = len(caches) if calls is None else calls
    # The output takes the place of the query: the same addresses in every run, so that a captured
    # graph need not be updated. With a single call that would cost a copy of the query.
    donate = (0,) if calls > 1 else ()
    return jax.jit(chain(op, calls), donate_argnums=donate).lower(query, tuple(caches)).compile()


def time_chained(
    op: Op,
    query: jax.Array,
    caches: Sequence[Any],
    *,
    calls: int | None = None,
    seconds: float = 0.3,
    samples: int = 9,
    compiled: Any = None,
) -> Timing:
    """Times ``op(query, *caches[i])`` in a chain of calls inside one compiled program.

    Args:
      op: returns an array of the query's shape and dtype.
      query: the first query.
      caches: tuples of further operands, one a call; together larger than the L2 cache.
      calls: calls a program; the number of caches when not given.
      seconds: about how long to measure.
      samples: how many samples the median is taken over.
      compiled: what ``compile_chain`` returned for the same arguments, if it is there already.

    Returns:
      The time of one call. Programs are queued back to back and only the last is waited for, so
      the host's share is one wait a sample.
    """
    calls = len(caches) if calls is None else calls
    program = compile_chain(op, query, caches, calls) if compiled is None else compiled
    operands = (tuple(caches),)
    if calls == 1:  # nothing is donated: the query stays as it is
        return time_program(program, (query, *operands), seconds=seconds, samples=samples)
    return time_carried(
        program, jnp.copy(query), operands, calls=calls, seconds=seconds, samples=samples
    )


def time_carried(
    program: Callable[..., Any],
    state: Any,
    operands: Sequence[Any],
    *,
    calls: int = 1,
    seconds: float = 0.3,
    samples: int = 9,
) -> Timing:
    """Times ``state = program(state, *operands)``, where the state may be donated.

    For a chain of outputs, and for ops that write in place. The program makes ``calls`` calls of an
    op; the time is that of one. Programs are queued back to back.
    """

    def enqueue() -> None:
        nonlocal state
        state = program(state, *operands)

    def run(count: int) -> float:
        return _between_ends(enqueue, lambda: _corner(state), lambda: state, count)

    return sample(run, calls, seconds=seconds, samples=samples)


def time_program(
    program: Callable[..., Any],
    operands: Sequence[Any],
    *,
    calls: int = 1,
    seconds: float = 0.3,
    samples: int = 9,
) -> Timing:
    """Times a compiled program that makes ``calls`` calls of an op; the time is that of one.

    The calls must not depend on each other nor be equal, or XLA makes one of them: give each an
    operand of its own. Programs are queued back to back, as in ``time_chained``.
    """

    result: Any = None

    def enqueue() -> None:
        nonlocal result
        result = program(*operands)

    def run(count: int) -> float:
        return _between_ends(enqueue, lambda: result, lambda: result, count)

    jax.block_until_ready(operands)
    return sample(run, calls, seconds=seconds, samples=samples)


def _between_ends(
    enqueue: Callable[[], None], mark: Callable[[], Any], last: Callable[[], Any], count: int
) -> float:
    """Seconds of ``count`` programs in a queue, from the end of the one before them.

    So what a first launch takes, and to hear of an end, is not in it. ``mark`` gives what is there
    when the programs that have been enqueued are done, and later ones leave alone.
    """
    enqueue()
    before = mark()
    enqueue()  # what the GPU does while the host hears of the end and goes on
    jax.block_until_ready(before)
    start = time.perf_counter()
    del before
    for _ in range(count - 1):
        enqueue()
    jax.block_until_ready(last())
    return time.perf_counter() - start


@jax.jit
def _corner(state: Any) -> jax.Array:
    """A number of the state, which is there when the state is."""
    first: jax.Array = jax.tree.leaves(state)[0]
    return first[(0,) * first.ndim]


def sample(run: Callable[[int], float], calls: int, *, seconds: float, samples: int) -> Timing:
    """Times ``run(programs)``, which returns the seconds that so many programs took.

    With ``seconds`` 0 a sample is of one program.
    """
    run(2)  # modules are loaded and graphs are built in the first runs
    programs = 1
    if seconds:
        once = min(run(1) for _ in range(2))
        programs = max(1, round(seconds / samples / once))
    times = [run(programs) / (programs * calls) * 1e3 for _ in range(samples)]
    return Timing(statistics.median(times), min(times), max(times), calls, programs)


def kernel_times(run: Callable[[], Any]) -> dict[str, tuple[int, float]]:
    """The device kernels of a call, from a ``jax.profiler`` trace.

    Args:
      run: what to trace; call it once before, so that nothing compiles in the trace.

    Returns:
      Kernel name -> (how often it ran, total milliseconds). Empty where there is no GPU.
    """
    totals: dict[str, tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        for path in glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True):
            for plane in jax.profiler.ProfileData.from_file(path).planes:
                if not plane.name.startswith("/device:GPU"):
                    continue
                for line in plane.lines:
                    if not line.name.startswith("Stream"):
                        continue  # the other lines repeat the same kernels grouped by op and module
                    for event in line.events:
                        count, total = totals[event.name]
                        totals[event.name] = (count + 1, total + event.duration_ns / 1e6)
    return dict(totals)
