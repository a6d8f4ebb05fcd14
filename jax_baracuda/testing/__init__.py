"""Shared test cases, comparison and timing, used by tests/, benchmarks/ and the doctor.

Nothing in ``jax_baracuda._src`` imports this package.
"""

from jax_baracuda.testing.attention import (
    attention_function,
    check_attention,
    gradient_function,
    reference_attention,
    run_attention,
)
from jax_baracuda.testing.attention_cases import (
    AttentionCase,
    AttentionInputs,
    make_attention_inputs,
)
from jax_baracuda.testing.attention_oracle import AttentionOracle, attention_oracle
from jax_baracuda.testing.attention_table import ATTENTION_CASES
from jax_baracuda.testing.cases import DECODE_CASES, DecodeCase, DecodeInputs, make_inputs
from jax_baracuda.testing.compare import Report, compare
from jax_baracuda.testing.decode import check_decode, reference_decode, run_decode
from jax_baracuda.testing.oracle import DecodeOracle, decode_oracle
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, paged_arrays, run_paged
from jax_baracuda.testing.paged_cases import (
    PAGED_DECODE_CASES,
    PAGED_PREFILL_CASES,
    PagedDecodeCase,
    PagedPrefillCase,
    Pages,
)
from jax_baracuda.testing.timing import Timing, kernel_times, rotation, time_chained

__all__ = [
    "ATTENTION_CASES",
    "DECODE_CASES",
    "PAGED_DECODE_CASES",
    "PAGED_PREFILL_CASES",
    "AttentionCase",
    "AttentionInputs",
    "AttentionOracle",
    "DecodeCase",
    "DecodeInputs",
    "DecodeOracle",
    "PagedDecodeCase",
    "PagedPrefillCase",
    "Pages",
    "Report",
    "Timing",
    "attention_function",
    "attention_oracle",
    "check_attention",
    "check_decode",
    "check_paged",
    "compare",
    "decode_oracle",
    "gradient_function",
    "kernel_times",
    "make_attention_inputs",
    "make_inputs",
    "make_paged_inputs",
    "paged_arrays",
    "reference_attention",
    "reference_decode",
    "rotation",
    "run_attention",
    "run_decode",
    "run_paged",
    "time_chained",
]
