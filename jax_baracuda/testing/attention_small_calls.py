"""``python -m jax_baracuda.testing.attention_small_calls``: each attention kernel once, small.

For compute-sanitizer, under which a call takes seconds::

    compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m jax_baracuda.testing.attention_small_calls

Every dtype and every padded head dimension, without options, with one and with all: forward,
backward with and without ``deterministic``, the gradient of the bias, dense and packed. The exit
code is 1 where a result is wrong. ``--list`` prints the cases, ``--only TEXT ...`` runs those whose
name has one of the texts, ``--no-check`` leaves the results unchecked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jax_baracuda.testing import small_calls
from jax_baracuda.testing.attention import Implementation, check_attention, run_attention
from jax_baracuda.testing.attention_cases import AttentionCase, make_attention_inputs
from jax_baracuda.testing.compare import Report

# Lengths that are no multiples of any tile, and more than one tile.
_ROWS = {"query_length": 150, "key_length": 170, "batch": 1, "kv_heads": 1}
# More heads than an H200 has places for CTAs, so that each takes several tiles, one after another.
_MANY = {"kv_heads": 140, "group": 1}
_MANY_GROUPS = {"kv_heads": 70, "group": 2}
_PACKED = {"cu_seqlens_q": (2, 30, 30, 140), "cu_seqlens_k": (0, 66, 70, 168)}
_EVERYTHING: dict[str, Any] = {
    "is_causal": True,
    "local_window_size": (60, 0),
    "sink_tokens": 3,
    "sinks": True,
    "alibi_slopes": "batch",
    "logits_soft_cap": 8.0,
    "bias": "bhq",
    "segments": "packed",
    "dropout_rate": 0.1,
    "lse_cotangent": True,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal-deterministic": {"is_causal": True, "deterministic": True},
    "everything": {**_EVERYTHING, "query_lengths": (140,), "kv_lengths": (160,)},
    "packed": {**_PACKED, "deterministic": True},
    "packed-everything": {**_EVERYTHING, **_PACKED, "query_lengths": (9, 5, 40)},
    "mask": {"bias": "q", "bias_dtype": "bool"},
    "bias-of-keys": {"bias": "", "bias_dtype": "bfloat16"},
    "many": _MANY,
    "many-causal-deterministic": {"is_causal": True, "deterministic": True, **_MANY_GROUPS},
    "many-everything": {**_EVERYTHING, **_MANY_GROUPS},
    "long": {**_MANY, "key_length": 1100},  # tiles differ by the keys
    "split": {"query_length": 40, "key_length": 1200, "group": 4},  # the keys over several CTAs
}
# Options that have kernels of their own on Hopper GPUs when they are alone.
_ALONE: dict[str, dict[str, Any]] = {
    "soft-cap": {"logits_soft_cap": 8.0},
    "alibi": {"alibi_slopes": "batch"},
    "bias": {"bias": "bhq", "bias_dtype": "bfloat16", "key_length": 176},
    "float-bias": {"bias": "bhq", "key_length": 176},
    "row-bias": {"bias": "bh"},
    "dropout": {"dropout_rate": 0.1},
    "steep-dropout": {"dropout_rate": 0.98},
}
for _name, _options in _ALONE.items():
    _OPTIONS[_name] = {**_options, **_MANY_GROUPS}
    _OPTIONS[f"{_name}-causal"] = {**_options, "is_causal": True, "deterministic": True}
    _OPTIONS[f"{_name}-long"] = {**_MANY, **_options, "key_length": 1104}
# Every padded size, alone or with another; 100 is no multiple of what a copy moves.
_DIMS = (
    (24, 24),
    (64, 64),
    (96, 96),
    (100, 128),
    (128, 128),
    (192, 128),
    (192, 192),
    (256, 256),
)


def small_cases() -> Iterator[AttentionCase]:
    """The calls: every combination of dtype, head dimension and options above."""
    for dtype in ("bfloat16", "float16", "float32"):
        for dims in _DIMS:
            # From 4096 keys on pairs of CTAs load keys together at 128.
            longest = {"longest": {**_MANY, "key_length": 4104}} if dims == (128, 128) else {}
            for name, options in (_OPTIONS | longest).items():
                yield AttentionCase(
                    f"{dtype}-{dims[0]}-{dims[1]}-{name}",
                    dtype=dtype,
                    head_dim=dims[0],
                    value_dim=dims[1],
                    **_ROWS | options,
                )


def _calls() -> Iterator[tuple[str, small_calls.Run]]:
    for case in small_cases():
        yield case.name, functools.partial(_run, case)


def _run(case: AttentionCase, implementation: Implementation, check: bool) -> Sequence[Report]:
    inputs = make_attention_inputs(case)
    results = run_attention(case, inputs, gradients=True, implementation=implementation)
    return check_attention(case, inputs, results) if check else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 if a result is wrong."""
    return small_calls.main(__doc__, _calls(), arguments)


if __name__ == "__main__":
    sys.exit(main())
