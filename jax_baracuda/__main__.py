"""``python -m jax_baracuda``: what is installed, which kernels serve this machine, do they work."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; 0 if every op gave the right result, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_baracuda",
        description="Show versions, devices and kernels, then run every op on real input against "
        "a float64 oracle. The exit code is 1 if one of them is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    import jax_baracuda
    from jax_baracuda._src import doctor
    from jax_baracuda.testing.doctor import run_checks

    report: dict[str, Any] = {
        "environment": doctor.environment(jax_baracuda.__version__),
        "kernels": doctor.kernels(),
    }
    if not options.json:
        _print_environment(report["environment"])
        _print_kernels(report["kernels"])
    report["checks"] = run_checks()
    report["ok"] = all(check["ok"] for check in report["checks"])
    if options.json:
        print(json.dumps(_finite(report), indent=2))
    else:
        _print_checks(report["checks"], report["ok"])
    return 0 if report["ok"] else 1


def _print_environment(environment: dict[str, Any]) -> None:
    from rich.table import Table

    build = environment["extension"]["build"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    for name, version in environment["versions"].items():
        table.add_row(name, version)
    for device in environment["devices"]:
        capability = device["compute_capability"]
        table.add_row(
            f"device {device['id']}",
            f"{device['kind']} ({device['platform']}"
            + (f", compute capability {capability})" if capability else ")"),
        )
    table.add_row("kernels built for", build.get("cuda_archs") or "no CUDA architecture")
    if build:
        table.add_row(
            "built with",
            ", ".join(f"{name} {build[name]}" for name in sorted(build) if name != "cuda_archs"),
        )
    _console().print(table)
    _console().print()
    style = {"cuda": "green", "reference": "yellow", "broken": "bold red"}[environment["runs"]]
    _console().print(environment["message"], style=style, highlight=False, markup=False)
    if environment["fix"]:
        _console().print(
            f"To fix it, {environment['fix']}",
            style=style,
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    _console().print()


def _print_kernels(kernels: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Which kernel serves a typical call", title_justify="left")
    columns = {
        "op": "op",
        "dtype": "dtype",
        "name": "kernel",
        "arch": "arch",
        "accumulator": "sums in",
        "deterministic": "repeatable",
        "workspace_bytes": "scratch",
    }
    for title in columns.values():
        table.add_column(title, no_wrap=True)
    for kernel in kernels:
        table.add_row(*(Text(_cell(kernel[name])) for name in columns))
    _console().print(table)
    for note in dict.fromkeys(kernel["note"] for kernel in kernels):
        _console().print(note, style="dim", highlight=False, markup=False)
    _console().print()


def _print_checks(checks: list[dict[str, Any]], ok: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Every op against the float64 oracle", title_justify="left")
    for column in ("op", "case", "error", "allowed", "us a call", ""):
        left = column in ("op", "case", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for check in checks:
        table.add_row(
            check["op"],
            check["case"],
            _number(check["error"]),
            _number(check["bound"]),
            "-" if check["ms"] is None else f"{check['ms'] * 1e3:.1f}",
            Text("ok", "green") if check["ok"] else Text("WRONG", "bold red"),
        )
    _console().print(table)
    for check in checks:
        if not check["ok"]:
            _console().print(
                f"{check['op']}, {check['case']}: {check['message']}",
                style="red",
                highlight=False,
                markup=False,
            )
    _console().print(
        "Every op is right." if ok else "Some ops are wrong.",
        style="green" if ok else "bold red",
        highlight=False,
    )


def _console() -> Any:
    from rich.console import Console

    # A pipe has no width: there the tables are as wide as they are.
    return Console(width=None if sys.stdout.isatty() else 160)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _finite(value: Any) -> Any:
    """The report with infinities and NaN, which JSON has no word for, as text."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
