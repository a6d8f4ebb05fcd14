"""The rows of a result file: one an implementation and case, of one run or several."""

from __future__ import annotations

import collections
import datetime
import json
import pathlib
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str:
    """The commit that is measured, "+" for changes on top of it; "unknown" without git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def row(
    op: str,
    passes: str,
    impl: str,
    config: dict[str, Any],
    numbers: dict[str, Any],
    run: dict[str, Any],
) -> dict[str, Any]:
    """A row in the format of the result files; ``run`` is what ``describe_run`` gave."""
    return {"op": op, "pass": passes, "impl": impl, "config": config, **numbers, **run}


def describe_run(gpu: str, versions: dict[str, str], measured: str | None = None) -> dict[str, Any]:
    """What the rows of one run share."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {"gpu": gpu, "versions": versions, "date": date, "commit": measured or commit()}


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """One row a line, so that a later run gives a readable difference.

    A run that is ended at any time leaves a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    new = path.with_name(f".{path.name}.new")
    new.write_text(f"[\n{lines}\n]\n")
    new.replace(path)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a result file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def origin(rows: list[dict[str, Any]]) -> str:
    """Where and with what the rows were measured; of several runs, how many rows are of each."""
    runs = collections.Counter((row["date"], row["commit"]) for row in rows)
    dates = [
        f"{date}, commit {commit}" + (f" ({count} rows)" if len(runs) > 1 else "")
        for (date, commit), count in sorted(runs.items())
    ]
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    return f"{rows[0]['gpu']}, {', '.join(dates)}; {versions}."


def missing(row: dict[str, Any]) -> str:
    """What a table says where a row has no figure."""
    return "late" if "not measured" in row.get("error", "") else "failed"
