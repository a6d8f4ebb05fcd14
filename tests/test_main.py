"""``python -m jax_baracuda``: the report, its exit code, and what it says of a broken install."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jax_baracuda
from jax_baracuda import __main__ as command
from jax_baracuda._src import doctor
from jax_baracuda._src.registry import has_cuda_device
from jax_baracuda.testing import ATTENTION_CASES
from jax_baracuda.testing import doctor as checks
from jax_baracuda.testing.cases import DECODE_CASES
from jax_baracuda.testing.int4 import INT4_CASES
from jax_baracuda.testing.paged_cases import PAGED_DECODE_CASES, PAGED_PREFILL_CASES

FEW = {
    "flash_attention": ("only-causal",),
    "flash_attention_varlen backward": ("varlen-outside-float16",),
    "flash_decode": ("plain-bfloat16-HND", "length-zero-sinks"),
    "paged_decode": ("everything-page-16",),
    "paged_prefill": ("everything-page-16",),
    "int4_matmul": ("gptq-act-order-float16-17-rows",),
}


@pytest.fixture
def few_checks(monkeypatch):
    """Some of the cases are enough to see the report."""
    monkeypatch.setattr(checks, "CHECKED", FEW)


def test_command():
    """The real thing, in a process of its own: every op is right on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "jax_baracuda"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        jax.__version__,
        jax_baracuda.__version__,
        "Every op is right",
        *checks.CHECKED,
        *itertools.chain(*checks.CHECKED.values()),
    ):
        assert text in done.stdout
    runs = "CUDA kernels" if has_cuda_device() else "ops run on the reference"
    assert runs in done.stdout


def test_json(few_checks, capsys):
    assert command.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["environment"]["versions"]["jax"] == jax.__version__
    assert report["environment"]["runs"] == ("cuda" if has_cuda_device() else "reference")
    ops = {"flash_attention", "flash_decode", "int4_matmul", "paged_decode", "paged_prefill"}
    assert {kernel["op"] for kernel in report["kernels"]} == ops
    cases = [(check["op"], check["case"]) for check in report["checks"]]
    assert cases == [(op, case) for op, names in FEW.items() for case in names]
    for check in report["checks"]:
        assert check["error"] <= check["bound"]
        assert check["ms"] > 0


@pytest.mark.parametrize(
    ("checked", "arguments"),
    [
        ("flash_attention", []),
        ("flash_attention_varlen backward", ["--json"]),
        ("flash_decode", []),
        ("flash_decode", ["--json"]),
        ("paged_decode", ["--json"]),
        ("paged_prefill", []),
        ("int4_matmul", ["--json"]),
    ],
)
def test_wrong_op_is_reported(checked, arguments, monkeypatch, capsys):
    """A kernel that is a little wrong makes the exit code 1 and is named."""
    op, backward, _ = checked.partition(" backward")
    right = getattr(jax_baracuda, op)

    def wrong(query, *args, **options):
        result = right(query, *args, **options)
        return jax.tree.map(lambda x: x * jnp.asarray(1.02, x.dtype), result)

    monkeypatch.setattr(checks, "CHECKED", {checked: FEW[checked]})
    monkeypatch.setattr(jax_baracuda, op, wrong)
    assert command.main(arguments) == 1
    output = capsys.readouterr().out
    said = f"{FEW[checked][0]} {'dquery' if backward else 'out'}: error"
    assert said in " ".join(output.split())


def test_op_that_raises_is_reported(few_checks, monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no kernels in this process")

    for op in {checked.partition(" ")[0] for checked in FEW}:
        monkeypatch.setattr(jax_baracuda, op, broken)
    assert command.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {check["message"] for check in report["checks"]} == {
        "RuntimeError: no kernels in this process"
    }


def test_checked_cases_exist():
    tables = {
        "flash_attention": ATTENTION_CASES,
        "flash_attention_varlen": ATTENTION_CASES,
        "flash_decode": DECODE_CASES,
        "paged_decode": PAGED_DECODE_CASES,
        "paged_prefill": PAGED_PREFILL_CASES,
        "int4_matmul": INT4_CASES,
    }
    for op, names in checks.CHECKED.items():
        assert set(names) <= {case.name for case in tables[op.removesuffix(" backward")]}


@pytest.mark.parametrize(
    ("problem", "gpu", "driver", "runs", "fix"),
    [
        (None, True, True, "cuda", None),
        ("the extension is not there", True, True, "broken", "JAX_BARACUDA_CUDA_ARCHS"),
        ("the extension is not there", False, False, "reference", None),
        (None, False, False, "reference", None),
        ("the extension is not there", False, True, "reference", "jax[cuda13]"),
    ],
)
def test_verdict(problem, gpu, driver, runs, fix):
    """What calls run on, and what to do where a GPU is not used."""
    verdict = doctor._verdict(problem, gpu=gpu, driver=driver)
    assert verdict["runs"] == runs
    if fix is None:
        assert verdict["fix"] is None
    else:
        assert fix in verdict["fix"]
    if runs == "broken":
        assert problem in verdict["message"]
