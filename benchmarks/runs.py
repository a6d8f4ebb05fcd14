"""A run of a benchmark: its workers, its rows, its clock and its file."""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rows as result_rows
import turns
from workers import Engine, Worker, attempt, start_workers

# Past this a worker of jax is ended after a cell: it would keep the memory from other benchmarks.
LARGE_BYTES = 10e9


def add_file_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of every run: where the rows go, and what they name as measured."""
    parser.add_argument(
        "--out", type=pathlib.Path, help=f"default: results/<gpu>/{name}.json; '-' writes no file"
    )
    parser.add_argument("--commit", help="the commit for the rows, where git is not there")


def chosen(text: str | None, known: Sequence[str]) -> list[str]:
    """The names of a comma list in the order of the known ones; all of those without a list."""
    names = known if text is None else text.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"unknown {unknown}; known are {list(known)}")
    return [name for name in known if name in names]


class Run:
    """Workers, the rows so far, and the clock.

    Args:
      name: of the result file.
      makers: what each worker runs.
      options: with those of ``add_file_options``.
    """

    def __init__(
        self, name: str, makers: Mapping[str, Callable[[], Engine]], options: argparse.Namespace
    ) -> None:
        self.name, self.options = name, options
        self.begin = time.monotonic()
        self.workers, gpu, versions = start_workers(makers)
        self.shared = result_rows.describe_run(gpu, versions, options.commit)
        self.rows: list[dict[str, Any]] = []
        # Seconds by what was waited for.
        self.spent = collections.Counter({"workers to start": self.seconds})

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begin

    def in_turn(self, preparing: Mapping[str, Worker]) -> Iterator[tuple[str, Worker]]:
        """The workers, one after another, each when it has prepared; all in one turn on the GPU.

        They prepare side by side. Beside other benchmarks all have done so before the turn begins.
        """
        waiting = dict(preparing)
        while waiting and turns.shared():
            self._receive(*waiting.popitem())
        with self.turn_of({}):
            for name, worker in preparing.items():
                if name in waiting:
                    self.spent["measurements"] -= self._receive(name, worker)
                yield name, worker

    @contextlib.contextmanager
    def turn_of(self, preparing: Mapping[str, Worker]) -> Iterator[None]:
        """A turn on the GPU, for workers of which all have prepared when it begins."""
        for name, worker in preparing.items():
            self._receive(name, worker)
        asked = time.monotonic()
        with turns.turn():
            begin = time.monotonic()
            self.spent["its turn"] += begin - asked
            try:
                yield
            finally:
                self.spent["measurements"] += time.monotonic() - begin

    def _receive(self, name: str, worker: Worker) -> float:
        """Waits until a worker has prepared; for how long."""
        begin = time.monotonic()
        try:
            worker.receive(180)
        except RuntimeError as error:
            print(f"  {name}: {error}")  # what it left undone fails when it is measured
        waited = time.monotonic() - begin
        self.spent["compilers"] += waited
        return waited

    def free(self, worker: Worker, held: float) -> None:
        """Frees the memory of a cell that held so many bytes."""
        if turns.shared() and held > LARGE_BYTES:
            worker.kill()  # the next request starts it again
        else:
            attempt(worker, "release")

    def add_row(
        self, op: str, passes: str, impl: str, config: dict[str, Any], numbers: dict[str, Any]
    ) -> None:
        """Appends a row and writes the file, so that a run that is cut short is not lost."""
        self.rows.append(result_rows.row(op, passes, impl, config, numbers, self.shared))
        path = self.path()
        if path:
            result_rows.write(path, self.rows)

    def path(self) -> pathlib.Path | None:
        """Where the rows go."""
        if self.options.out is not None:
            return None if str(self.options.out) == "-" else self.options.out
        gpu = self.shared["gpu"].lower().split()[-1]
        return pathlib.Path(result_rows.RESULTS / gpu / f"{self.name}.json")

    def finish(self) -> int:
        """Ends the workers; 1 if ours failed anywhere."""
        for worker in self.workers.values():
            worker.kill()
        spent = ", ".join(f"{what} {seconds:.0f}" for what, seconds in self.spent.items())
        print(f"{self.seconds:.0f} s, of which it waited for {spent}")
        if self.path():
            print(f"wrote {self.path()}")
        return int(any(row["impl"] == "jax_baracuda" and "error" in row for row in self.rows))
