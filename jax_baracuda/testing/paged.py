"""Runs a paged case. Its results are those of a call over contiguous keys, which judges them."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import numpy as np

from jax_baracuda.testing.attention import check_attention
from jax_baracuda.testing.attention_cases import AttentionInputs, make_attention_inputs
from jax_baracuda.testing.calls import jit_once
from jax_baracuda.testing.cases import DecodeInputs, make_inputs
from jax_baracuda.testing.compare import Report
from jax_baracuda.testing.decode import check_decode
from jax_baracuda.testing.paged_cases import PagedDecodeCase, PagedPrefillCase

Implementation = Literal["cuda", "reference"] | None
PagedCase = PagedDecodeCase | PagedPrefillCase
Inputs = DecodeInputs | AttentionInputs


def make_paged_inputs(case: PagedCase, seed: int = 0) -> Inputs:
    """Draws the contiguous inputs of a case; ``paged_arrays`` has them in pages."""
    if isinstance(case, PagedDecodeCase):
        return make_inputs(case.call, seed)
    return make_attention_inputs(case.call, seed)


def paged_arrays(case: PagedCase, inputs: Inputs) -> dict[str, np.ndarray]:
    """The operands of a case by the names of the arguments."""
    if isinstance(case, PagedDecodeCase):
        assert isinstance(inputs, DecodeInputs)
        return case.arrays(inputs)
    assert isinstance(inputs, AttentionInputs)
    return case.arrays(inputs)


def paged_function(case: PagedCase, *, implementation: Implementation = None) -> Any:
    """The public function of a case with its options: a function of ``paged_arrays``."""
    import jax_baracuda

    name = "paged_decode" if isinstance(case, PagedDecodeCase) else "paged_prefill"
    call = getattr(jax_baracuda, name)
    return functools.partial(call, **case.options(), implementation=implementation)


def run_paged(
    case: PagedCase, inputs: Inputs, *, implementation: Implementation = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calls the public function of a case under jit on the default device; (out, lse)."""
    call = paged_function(case, implementation=implementation)
    arrays = jax.device_put(paged_arrays(case, inputs))
    out, lse = jit_once(call, jax.default_backend())(arrays)
    return np.asarray(out), np.asarray(lse)


def check_paged(
    case: PagedCase, inputs: Inputs, out: np.ndarray, lse: np.ndarray, **yardstick: Any
) -> list[Report]:
    """Judges a result: the reports of the output and of the log-sum-exp.

    ``yardstick`` may hold the ``oracle`` and the ``reference`` of ``check_decode`` or
    ``check_attention``.
    """
    if isinstance(case, PagedDecodeCase):
        assert isinstance(inputs, DecodeInputs)
        return list(check_decode(case.call, inputs, out, lse, **yardstick))
    assert isinstance(inputs, AttentionInputs)
    results = {"out": out, "lse": lse.T}
    return check_attention(case.call, inputs, results, **yardstick)
