"""All benchmarks, side by side, within a time.

    python benchmarks/bench_all.py                            # everything, a quarter of an hour
    python benchmarks/bench_all.py --seconds 560 --out $OUT   # and no longer than that
    python benchmarks/bench_all.py --parts attention,training --one-by-one

Every part is a program of its own that writes its rows as it measures them: whatever ends this one
early, the files hold what was measured. Much of a part's time is compiling, on the CPU; so parts
run at the same time, as many as the GPU's memory holds, and take turns on the GPU: while one
measures a cell nothing else runs there (turns.py). Parts whose calls take microseconds run alone.
With less time than all parts need some leave peers or cells out. Afterwards
``python benchmarks/plot.py`` makes plots and tables of the files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import runs
import turns

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
      name: its own, and that of its file.
      program: beside this one.
      seconds: that it uses an H200.
      gb: of the GPU's memory that it may hold beside other parts.
      options: that it has of "--budget" (it begins less as the end comes near) and "--quick".
      alone: nothing runs beside it. It measures calls of a few microseconds, which wait for their
        launches where other parts keep all cores busy.
    """

    name: str
    program: str
    seconds: float
    gb: float = 0
    options: tuple[str, ...] = ("--budget", "--quick")
    alone: bool = False


PARTS = [
    Part("attention", "bench_attention.py", 160, 10),
    Part("int4", "bench_int4.py", 120, 22, ("--quick",), alone=True),
    Part("decode", "bench_decode.py", 80, 60),
    Part("paged", "bench_paged.py", 140, 60),
    Part("training", "bench_training.py", 100, 92),
    Part("decode_step", "graph_step.py", 60, 4, (), alone=True),
]
MEMORY_GB = 132  # for all parts that run at the same time
STOP_SECONDS = 10  # that a part is given to end when it is asked to
POLL_SECONDS = 0.2


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = ", ".join(part.name for part in PARTS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", help=f"comma list of {names}")
    parser.add_argument("--seconds", type=float, default=1.1 * sum(part.seconds for part in PARTS))
    parser.add_argument("--one-by-one", action="store_true", help="no two parts at the same time")
    parser.add_argument("--memory", type=float, default=MEMORY_GB, help=f"GB ({MEMORY_GB})")
    parser.add_argument("--quick", action="store_true", help="the parts' own --quick")
    parser.add_argument("--out", type=pathlib.Path, help="folder; default: results/<gpu>")
    parser.add_argument("--commit", help="the commit for the rows, where git is not there")
    return parser.parse_args(arguments)


def chosen(text: str | None) -> list[Part]:
    """The parts of a comma list, in their order; all of them without a list."""
    names = runs.chosen(text, [part.name for part in PARTS])
    return [part for part in PARTS if part.name in names]


def command(part: Part, limit: float, options: argparse.Namespace) -> list[str]:
    """How a part is started that must end within ``limit`` seconds."""
    words = [sys.executable, str(HERE / part.program)]
    if "--budget" in part.options:  # past which it still finishes what it has begun
        words += ["--budget", str(round(0.8 * limit))]
    if "--quick" in part.options and options.quick:
        words += ["--quick"]
    if options.out:
        words += ["--out", str(options.out / f"{part.name}.json")]
    if options.commit:
        words += ["--commit", options.commit]
    return words


class Running:
    """A part that runs, and its children with it."""

    def __init__(self, part: Part, limit: float, options: argparse.Namespace) -> None:
        self.part, self.limit, self.started = part, limit, time.monotonic()
        self.process = subprocess.Popen(
            command(part, limit, options),
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.printer = threading.Thread(target=self.show, daemon=True)
        self.printer.start()

    def show(self) -> None:
        """Prints what the part prints, and which part it was."""
        for line in self.process.stdout or ():
            print(f"{self.part.name:>11} | {line}", end="", flush=True)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def ended(self) -> str | None:
        """How it ended, None while it runs. It is ended when its time is over."""
        code = self.process.poll()
        if code is None and self.seconds < self.limit:
            return None
        self.end()
        self.printer.join(STOP_SECONDS)
        if code is None:
            return f"ended after {self.limit:.0f} s"
        return "done" if code == 0 else f"failed (exit code {code})"

    def end(self) -> None:
        """Ends the program and what it started, if they have not ended; it is asked first."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)


class Schedule:
    """Starts parts as the memory allows, the first ones first."""

    def __init__(self, parts: list[Part], options: argparse.Namespace) -> None:
        self.waiting, self.running = list(parts), list[Running]()
        self.options, self.begin = options, time.monotonic()
        self.total = sum(part.seconds for part in parts)
        self.ends: list[str] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.options.seconds - (time.monotonic() - self.begin)

    def run(self) -> list[str]:
        """Runs all parts; how they ended."""
        try:
            while self.waiting or self.running:
                self.start()
                time.sleep(POLL_SECONDS)
                self.collect()
        finally:
            for running in self.running:
                running.end()
        return self.ends

    def start(self) -> None:
        """Starts the parts that there is room for; those that wait keep their share of the time."""
        beginning = self.fitting()
        self.waiting = [part for part in self.waiting if part not in beginning]
        share = sum(part.seconds for part in self.waiting) / self.total
        limit = self.left - share * self.options.seconds
        for part in beginning:
            if limit > 1:
                print(f"== {part.name}: at most {limit:.0f} s", flush=True)
                self.running.append(Running(part, limit, self.options))
            else:
                self.report(part, "no time left", 0)

    def fitting(self) -> list[Part]:
        """The waiting parts that may start now: at least one, if none runs."""
        found: list[Part] = []
        held = sum(running.part.gb for running in self.running)
        for part in self.waiting:
            first = not self.running and not found
            beside = [running.part for running in self.running] + found
            apart = self.options.one_by_one or any(other.alone for other in [part, *beside])
            if first or (not apart and held + part.gb <= self.options.memory):
                found.append(part)
                held += part.gb
        return found

    def collect(self) -> None:
        """Takes note of the parts that have ended."""
        for running in list(self.running):
            how = running.ended()
            if how is not None:
                self.running.remove(running)
                self.report(running.part, how, running.seconds)

    def report(self, part: Part, how: str, seconds: float) -> None:
        """Prints how a part ended, and what it left."""
        self.ends.append(how)
        out = self.options.out
        left_behind = f"; {rows_of(out / f'{part.name}.json')}" if out else ""
        print(f"== {part.name}: {how}, {seconds:.0f} s{left_behind}", flush=True)


def rows_of(path: pathlib.Path) -> str:
    """What a part left."""
    if not path.exists():
        return "no file"
    rows = json.loads(path.read_text())
    failed = sum("error" in row for row in rows)
    return f"{len(rows)} rows" + (f", {failed} with errors" if failed else "")


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts; 1 if one failed or was ended."""
    options = parse(arguments)
    parts = chosen(options.parts)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile() as file, contextlib.ExitStack() as stack:
        if not options.one_by_one:
            os.environ[turns.FILE] = file.name
            stack.callback(os.environ.pop, turns.FILE)
        ends = Schedule(parts, options).run()
    return int(any(how != "done" for how in ends))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the parts that run are ended with it
    raise SystemExit(main())
