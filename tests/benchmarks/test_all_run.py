"""bench_all.py: shares of the time, programs that hang or fail, and what is left of them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import bench_all
import pytest
import turns
from bench_all import Part

WRITES = """
import sys, json, pathlib
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text(json.dumps([{"ms": 1}, {"ms": None, "error": "no"}]))
print(*sys.argv[1:])
"""
HANGS = f"""
import subprocess, sys, pathlib, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
out.with_suffix(".pid").write_text(str(child.pid))
{WRITES}
time.sleep(60)
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Parts of so many seconds from the texts of programs."""

    def parts(**programs):
        monkeypatch.setattr(bench_all, "HERE", tmp_path)
        monkeypatch.setattr(bench_all, "STOP_SECONDS", 1)
        made = []
        for name, (seconds, text) in programs.items():
            (tmp_path / f"{name}.py").write_text(text)
            made.append(Part(name, f"{name}.py", seconds))
        monkeypatch.setattr(bench_all, "PARTS", made)

    return parts


def test_every_part_is_a_program_that_takes_its_options(tmp_path):
    options = bench_all.parse(["--quick", "--out", str(tmp_path), "--commit", "abc"])
    for part in bench_all.PARTS:
        words = bench_all.command(part, 100, options)
        done = subprocess.run(
            [*words, "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        for word in words[2:]:
            if word.startswith("--"):
                assert word in done.stdout
        assert ("--budget" in words) == ("--budget" in done.stdout)


def test_a_part_that_hangs_is_ended_and_leaves_its_file(parts, tmp_path, capsys):
    parts(first=(2, HANGS), second=(1, WRITES))
    out = tmp_path / "out"
    begin = time.monotonic()
    arguments = ["--seconds", "6", "--out", str(out), "--one-by-one"]
    assert bench_all.main(arguments) == 1
    assert time.monotonic() - begin < 20
    printed = capsys.readouterr().out
    assert "first: ended after 4 s" in printed
    assert "second: done" in printed
    assert printed.count("2 rows, 1 with errors") == 2
    child = int((out / "first.pid").read_text())
    gone = subprocess.run(
        [sys.executable, "-c", f"import os; os.kill({child}, 0)"], capture_output=True, check=False
    )
    assert gone.returncode or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


def test_a_part_that_fails_does_not_stop_the_next(parts, tmp_path, capsys):
    parts(first=(1, "raise SystemExit(3)"), second=(1, WRITES))
    assert bench_all.main(["--seconds", "60", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "first: failed (exit code 3)" in printed
    assert "; no file" in printed
    assert "second: done" in printed


def test_what_a_part_leaves_the_next_may_use(parts, tmp_path, capsys):
    parts(first=(1, "pass"), second=(1, WRITES))
    arguments = ["--seconds", "40", "--out", str(tmp_path / "out"), "--one-by-one"]
    assert bench_all.main([*arguments, "--quick", "--commit", "abc"]) == 0
    printed = capsys.readouterr().out
    limit = float(re.search(r"second: at most (\d+) s", printed)[1])
    assert 30 < limit <= 40  # and not the 20 of its share
    assert int(re.search(r"--budget (\d+)", printed)[1]) == pytest.approx(0.8 * limit, abs=1)
    assert "--quick --out" in printed
    assert "--commit abc" in printed
    assert bench_all.main([*arguments, "--parts", "second"]) == 0
    with pytest.raises(SystemExit, match="unknown \\['third'\\]"):
        bench_all.main(["--parts", "third"])


def test_parts_run_together_as_the_memory_allows(parts, tmp_path):
    """And the whole time is for all that begin together, but for the share of what has to wait."""
    parts(a=(1, ""), b=(2, ""), c=(1, ""), d=(1, ""))
    sizes = dict(a=10, b=90, c=40, d=30)
    given = [dataclasses.replace(part, gb=sizes[part.name]) for part in bench_all.PARTS]
    options = bench_all.parse(["--seconds", "100", "--memory", "130"])
    schedule = bench_all.Schedule(given, options)
    assert [part.name for part in schedule.fitting()] == ["a", "b", "d"]
    options.one_by_one = True
    assert [part.name for part in schedule.fitting()] == ["a"]
    options.one_by_one, options.memory = False, 5  # the first one starts whatever it takes
    assert [part.name for part in schedule.fitting()] == ["a"]
    assert all(part.gb < bench_all.MEMORY_GB for part in bench_all.PARTS)


def test_nothing_runs_beside_a_part_that_is_alone(parts):
    parts(a=(1, ""), b=(1, ""), c=(1, ""))
    options = bench_all.parse(["--seconds", "100"])
    first, middle, last = bench_all.PARTS
    middle = dataclasses.replace(middle, alone=True)

    def fitting(*given):
        return [part.name for part in bench_all.Schedule(list(given), options).fitting()]

    assert fitting(first, middle, last) == ["a", "c"]
    assert fitting(middle, first, last) == ["b"]


TAKES_TURNS = """
import sys, time
sys.path.insert(0, {folder!r})
import turns
assert turns.shared()
for _ in range(5):
    with turns.turn():
        with open({log!r}, "a") as file:
            file.write("begin ")
        time.sleep(0.05)
        with open({log!r}, "a") as file:
            file.write("end ")
"""


def test_parts_take_turns(parts, tmp_path):
    folder, log = str(Path(turns.__file__).parent), tmp_path / "log"
    text = TAKES_TURNS.format(folder=folder, log=str(log))
    parts(first=(1, text), second=(1, text))
    assert bench_all.main(["--seconds", "60", "--out", str(tmp_path / "out")]) == 0
    assert log.read_text() == "begin end " * 10
    assert not turns.shared()
    with turns.turn(), turns.turn():  # alone there is nothing to wait for
        pass
