"""What is public says what it takes, gives and refuses, and its examples are true."""

import doctest
import inspect
import re

import pytest

import jax_baracuda
from jax_baracuda import linen, nnx, paged, quant

PUBLIC = {
    f"{module.__name__.removeprefix('jax_baracuda.')}.{name}": getattr(module, name)
    for module in (jax_baracuda, linen, nnx, paged, quant)
    for name in module.__all__
    if callable(getattr(module, name))
}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_results_and_errors_are_documented(name):
    text = inspect.getdoc(FUNCTIONS[name])
    for title in ("Args:", "Returns:", "Raises:", "Example::"):
        assert f"\n{title}\n" in text, title
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        assert re.search(rf"\b{argument}\b", text), argument


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_are_true(name):
    finder = doctest.DocTestFinder(recurse=False)
    for examples in finder.find(PUBLIC[name], name, globs={}):
        assert doctest.DocTestRunner().run(examples).failed == 0
