"""Benchmark workers: one process a framework, so that none holds another's memory or state.

A worker owns an engine (an object with ``measure(impl, cell, seconds) -> dict``). A worker that
crashes or hangs costs its cell an error row, and the next request starts it again.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Engine(Protocol):
    """What a worker runs."""

    def about(self) -> dict[str, Any]:
        """Versions and the GPU's name."""
        ...

    def prepare(self, impls: list[str], cell: Any) -> None:
        """Work ahead of the measurements of a cell, such as compiling."""
        ...

    def measure(self, impl: str, cell: Any, seconds: float) -> dict[str, Any]:
        """Measures one implementation: {"ms": ...} and whatever else belongs in the row."""
        ...

    def release(self) -> None:
        """Frees the cell's memory."""
        ...


def _serve(make: Callable[[], Engine], pipe: multiprocessing.connection.Connection) -> None:
    engine: Engine | None = None
    while True:
        name, args = pipe.recv()
        if name == "stop":
            return
        try:
            engine = make() if engine is None else engine
            pipe.send((True, getattr(engine, name)(*args)))
        except BaseException as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            pipe.send((False, text.split("\n-----")[0]))  # without jax's note on tracebacks


class Worker:
    """A process with an engine in it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._process: Any = None
        self._pipe: Any = None
        self.start()

    def start(self) -> None:
        """Starts the process; spawned, so that no framework's state is inherited."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._make, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, name: str, *args: Any) -> None:
        """Asks for a method of the engine without waiting for the answer."""
        if self._process is None or not self._process.is_alive():
            self.kill()
            self.start()
        self._pipe.send((name, args))

    def receive(self, timeout: float) -> Any:
        """The answer of the oldest request; RuntimeError with the worker's error text."""
        try:
            if not self._pipe.poll(timeout):
                raise RuntimeError(f"no answer within {timeout:.0f} s")
            done, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self.kill()
            raise RuntimeError(f"the worker died (exit code {code})") from error
        except RuntimeError:
            self.kill()
            raise
        if not done:
            raise RuntimeError(answer)
        return answer

    def call(self, name: str, *args: Any, timeout: float = 120) -> Any:
        """Asks and waits."""
        self.send(name, *args)
        return self.receive(timeout)

    def kill(self) -> None:
        """Ends the process; the next request starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def start_workers(
    makers: Mapping[str, Callable[[], Engine]], timeout: float = 120
) -> tuple[dict[str, Worker], str, dict[str, str]]:
    """A worker for each maker, the GPU's name, and the versions of what they run on."""
    workers = {name: Worker(make) for name, make in makers.items()}
    versions: dict[str, str] = {}
    gpu = "unknown"
    for worker in workers.values():  # the frameworks are imported side by side
        worker.send("about")
    for name, worker in workers.items():
        try:
            about = worker.receive(timeout)
            gpu = about["gpu"]
            versions |= about["versions"]
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return workers, gpu, versions


def attempt(worker: Worker, name: str, *args: Any) -> Any:
    """The answer of a worker, or the text of its error."""
    try:
        return worker.call(name, *args)
    except RuntimeError as error:
        return str(error) or "unknown error"


# Samples of one measurement lie within 4% of each other where nothing else uses the GPU.
CALM = 0.06
MOST_MEASUREMENTS = 3


def spread(answer: dict[str, Any]) -> float:
    """How far the samples of a measurement are apart, of their median."""
    return float((answer["slowest"] - answer["fastest"]) / answer["ms"])


def measure(worker: Worker, *args: Any) -> Any:
    """A measurement, or the text of its error.

    Where its samples are far apart something else has used the GPU or kept the host from it, such
    as the compiler of a benchmark beside this one: it is made again, and the calmest one counts.
    """
    calmest: dict[str, Any] | None = None
    for _ in range(MOST_MEASUREMENTS):
        answer = attempt(worker, "measure", *args)
        if isinstance(answer, str) or "slowest" not in answer:
            return calmest or answer
        if calmest is None or spread(answer) < spread(calmest):
            calmest = answer
        if spread(calmest) < CALM:
            break
    return calmest
