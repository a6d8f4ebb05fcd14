"""The calls for compute-sanitizer: they run, they judge, and their names are their own."""

from __future__ import annotations

import importlib

import pytest

from jax_baracuda.testing import small_calls
from jax_baracuda.testing.compare import Report

MODULES = {  # and a call of each that is quick
    "attention": "bfloat16-24-24-plain",
    "cache": "apply_rope odd-bfloat16-neighbours",
    "int4": "float16-200-group-64-rows-9",
    "paged": "paged_decode-bfloat16-24-everything-page-5-splits-3",
}


@pytest.mark.parametrize("op", MODULES)
def test_the_calls_of_an_op(op, capsys):
    module = importlib.import_module(f"jax_baracuda.testing.{op}_small_calls")
    assert module.main(["--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(set(names)) == len(names) > 10
    only = next(name for name in names if MODULES[op] in name)
    assert module.main(["--implementation", "reference", "--only", only]) == 0
    assert only in capsys.readouterr().out


def test_a_wrong_result_is_told():
    wrong = Report("out", False, 1.0, 0.0, 0.1, (), "out is wrong")
    calls = [("right", lambda *_: []), ("wrong", lambda *_: [wrong])]
    assert small_calls.main("", calls, ["--only", "right"]) == 0
    assert small_calls.main("", calls, []) == 1
