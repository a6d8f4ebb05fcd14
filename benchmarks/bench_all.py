"""All benchmarks one after another, the most important first, within a time.

    python benchmarks/bench_all.py                            # everything, about 15 minutes
    python benchmarks/bench_all.py --seconds 570 --out $OUT   # each part gets its share of that
    python benchmarks/bench_all.py --parts attention,training,int4 --seconds 470
    python benchmarks/bench_all.py --parts decode,paged,decode_step --seconds 490

Every part is a program of its own that writes its rows as it measures them: whatever ends this one
early, the files of the parts before are whole, and that of the part that ran holds what it had
measured. A part that takes longer than its share and what the others left is ended; with less than
the time of all parts some leave peers or cells out, so where a command may last ten minutes take
the last two of these. Afterwards
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
import time

import runs

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
      name: its own, and that of its file.
      program: beside this one.
      seconds: that it takes on an H200.
      options: that it has of "--budget" (it begins less as the end comes near) and "--quick".
    """

    name: str
    program: str
    seconds: float
    options: tuple[str, ...] = ("--budget", "--quick")


PARTS = [
    Part("attention", "bench_attention.py", 180),
    Part("training", "bench_training.py", 140),
    Part("decode", "bench_decode.py", 230),
    Part("int4", "bench_int4.py", 150, ("--quick",)),
    Part("paged", "bench_paged.py", 200),
    Part("decode_step", "graph_step.py", 60, ()),
]
STOP_SECONDS = 10  # that a part is given to end when it is asked to


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = ", ".join(part.name for part in PARTS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", help=f"comma list of {names}")
    parser.add_argument("--seconds", type=float, default=sum(part.seconds for part in PARTS))
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


def run(words: list[str], limit: float) -> str:
    """Runs a program for at most so many seconds, and its children with it; how it ended."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(limit)
        return "done" if code == 0 else f"failed (exit code {code})"
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program and what it started, if they have not ended; it is asked first."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


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
    begin = time.monotonic()
    ends = []
    for index, part in enumerate(parts):
        left = options.seconds - (time.monotonic() - begin)
        limit = left * part.seconds / sum(other.seconds for other in parts[index:])
        print(f"== {part.name}: at most {limit:.0f} s", flush=True)
        started = time.monotonic()
        how = run(command(part, limit, options), limit) if limit > 1 else "no time left"
        ends.append(how)
        left_behind = f"; {rows_of(options.out / f'{part.name}.json')}" if options.out else ""
        seconds = time.monotonic() - started
        print(f"== {part.name}: {how}, {seconds:.0f} s{left_behind}", flush=True)
    return int(any(how != "done" for how in ends))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the part that runs is ended with it
    raise SystemExit(main())
