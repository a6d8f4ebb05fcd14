"""Shared test cases, comparison and timing, used by tests/, benchmarks/ and the doctor.

Nothing in ``jax_baracuda._src`` imports this package.
"""

from jax_baracuda.testing.cases import DECODE_CASES, DecodeCase, DecodeInputs, make_inputs
from jax_baracuda.testing.compare import Report, compare
from jax_baracuda.testing.decode import check_decode, reference_decode, run_decode
from jax_baracuda.testing.oracle import DecodeOracle, decode_oracle
from jax_baracuda.testing.timing import Timing, kernel_times, rotation, time_chained

__all__ = [
    "DECODE_CASES",
    "DecodeCase",
    "DecodeInputs",
    "DecodeOracle",
    "Report",
    "Timing",
    "check_decode",
    "compare",
    "decode_oracle",
    "kernel_times",
    "make_inputs",
    "reference_decode",
    "rotation",
    "run_decode",
    "time_chained",
]
