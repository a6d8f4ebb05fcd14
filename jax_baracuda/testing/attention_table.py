"""The one table of attention cases, and a strategy of random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jax_baracuda.testing.attention_cases import AttentionCase

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_DTYPES = ("bfloat16", "float16", "float32")
_PACKED: dict[str, Any] = {
    "query_length": 200,
    "cu_seqlens_q": (0, 70, 71, 71, 200),
    "cu_seqlens_k": (0, 100, 100, 117, 200),
}

# Every option alone, on two sequences of 150 queries and 170 keys.
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "scale-zero": {"scale": 0.0},
    "scale-negative": {"scale": -0.2, "is_causal": True},
    "causal": {"is_causal": True},
    "causal-top-left": {"is_causal": True, "top_left": True},
    "window": {"local_window_size": (40, 20)},
    "window-int": {"local_window_size": 9},
    "window-zero": {"local_window_size": 0},
    "window-left": {"local_window_size": (33, None)},
    "window-right": {"local_window_size": (None, 5)},
    "window-causal": {"local_window_size": (70, 70), "is_causal": True},
    "window-wide": {"local_window_size": (1000, 1000)},
    "window-top-left": {"local_window_size": (20, 10), "top_left": True},
    "sink-tokens": {"sink_tokens": 4, "local_window_size": (20, 0)},
    "sink-tokens-causal": {"sink_tokens": 70, "local_window_size": 16, "is_causal": True},
    "sink-tokens-many": {"sink_tokens": 1000, "local_window_size": 16},
    "sinks": {"sinks": True},
    "sinks-causal": {"sinks": True, "is_causal": True, "query_length": 190},
    "alibi-head": {"alibi_slopes": "head", "is_causal": True},
    "alibi-batch": {"alibi_slopes": "batch"},
    "alibi-top-left": {"alibi_slopes": "head", "top_left": True},
    "soft-cap": {"logits_soft_cap": 10.0, "scale": 1.0},
    "soft-cap-1": {"logits_soft_cap": 1.0, "scale": 0.5, "is_causal": True},
    "bias-full": {"bias": "bhq"},
    "bias-hides": {"bias": "bhq", "bias_hides": True},
    "bias-one": {"bias": ""},
    "bias-batch": {"bias": "b", "is_causal": True},
    "bias-head": {"bias": "h"},
    "bias-batch-head": {"bias": "bh", "bias_dtype": "float16", "bias_hides": True},
    "bias-one-half": {"bias": "", "bias_dtype": "bfloat16", "kv_lengths": (64, 169)},
    "bias-row": {"bias": "q", "bias_dtype": "bfloat16"},
    "bias-head-row": {"bias": "hq", "bias_dtype": "float16"},
    "bias-batch-row": {"bias": "bq", "bias_hides": True},
    "mask": {"bias": "bhq", "bias_dtype": "bool"},
    "mask-row": {"bias": "q", "bias_dtype": "bool"},
    "mask-batch": {"bias": "b", "bias_dtype": "bool", "is_causal": True},
    "query-lengths": {"query_lengths": (150, 37)},
    "kv-lengths": {"kv_lengths": (64, 169)},
    "kv-lengths-zero": {"kv_lengths": (0, 65)},
    "lengths": {"query_lengths": (0, 129), "kv_lengths": (170, 1), "is_causal": True},
    "lengths-clamped": {"query_lengths": (-5, 1000), "kv_lengths": (2**31 - 1, -(2**31))},
    "segments": {"segments": "packed", "key_length": None},
    "segments-causal": {"segments": "packed", "key_length": None, "is_causal": True},
    "segments-shuffled": {"segments": "shuffled"},
    "segments-padded": {"segments": "padded"},
    "dropout": {"dropout_rate": 0.2},
    "dropout-causal": {"dropout_rate": 0.75, "is_causal": True},
    "dropout-steep": {"dropout_rate": 0.98},  # more than some kernels take
    "lse": {"lse_cotangent": True},
    "lse-causal": {"lse_cotangent": True, "is_causal": True, "query_length": 190},
    "deterministic": {"deterministic": True},
    "deterministic-causal": {"deterministic": True, "is_causal": True},
}

# Mixes, every one of several options; the first is most of what there is.
_MIXES: dict[str, dict[str, Any]] = {
    "everything": {
        "scale": 0.2,
        "is_causal": True,
        "local_window_size": (90, 3),
        "sink_tokens": 5,
        "sinks": True,
        "alibi_slopes": "batch",
        "logits_soft_cap": 8.0,
        "bias": "hq",
        "query_lengths": (150, 140),
        "kv_lengths": (160, 170),
        "segments": "packed",
        "dropout_rate": 0.1,
        "lse_cotangent": True,
    },
    "llm": {"is_causal": True, "group": 8, "kv_heads": 1, "sinks": True, "local_window_size": 63},
    "gemma": {"is_causal": True, "logits_soft_cap": 20.0, "local_window_size": (50, 50)},
    "mpt": {"is_causal": True, "alibi_slopes": "head", "dropout_rate": 0.1, "group": 1},
    "t5": {"bias": "hq", "scale": 1.0, "kv_lengths": (150, 80), "dropout_rate": 0.2},
    "vision": {"local_window_size": (30, 30), "bias": "hq", "bias_dtype": "bfloat16"},
    "packed-training": {
        "segments": "padded",
        "is_causal": True,
        "key_length": None,
        "dropout_rate": 0.1,
        "sinks": True,
    },
    "cap-bias": {"logits_soft_cap": 5.0, "bias": "bh", "scale": 0.5, "lse_cotangent": True},
    "cap-dropout": {"logits_soft_cap": 5.0, "dropout_rate": 0.5, "scale": 0.5, "sinks": True},
    "mask-dropout": {
        "bias": "b",
        "bias_dtype": "bool",
        "dropout_rate": 0.3,
        "alibi_slopes": "head",
    },
    "bias-window": {"bias": "bhq", "local_window_size": (10, 40), "sink_tokens": 3, "sinks": True},
    "bias-deterministic": {"bias": "q", "deterministic": True, "dropout_rate": 0.1},
    "window-deterministic": {
        "local_window_size": (30, 0),
        "deterministic": True,
        "kv_lengths": (150, 99),
        "lse_cotangent": True,
    },
    "sinks-lse": {"sinks": True, "lse_cotangent": True, "kv_lengths": (0, 60), "is_causal": True},
}

# Packed sequences: an empty query, an empty key range, a cross length, with every kind of option.
_VARLEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal-lse": {"is_causal": True, "lse_cotangent": True, "sinks": True},
    "window": {"local_window_size": (20, 10), "sink_tokens": 2},
    "outside": {"cu_seqlens_q": (9, 70, 90, 150), "cu_seqlens_k": (3, 70, 100, 177)},
    "offsets-outside": {"cu_seqlens_q": (-7, 90, 90, 500), "cu_seqlens_k": (3, 70, 70, 500)},
    "short-max": {"max_seqlens": (64, 16), "is_causal": True},
    "long-max": {"max_seqlens": (1000, 2000)},
    "one": {"cu_seqlens_q": (0, 200), "cu_seqlens_k": (0, 200), "is_causal": True},
    "many": {
        "cu_seqlens_q": tuple(range(0, 205, 5)),
        "cu_seqlens_k": tuple(range(0, 205, 5)),
        "is_causal": True,
    },
    "bias": {"bias": "bhq", "bias_hides": True},
    "bias-row": {"bias": "hq", "is_causal": True, "deterministic": True},
    "mask": {"bias": "bq", "bias_dtype": "bool"},
    "lengths": {"query_lengths": (60, 9, 3, 100), "kv_lengths": (90, 5, 17, 0)},
    "segments": {"segments": "packed", "is_causal": True},
    "dropout": {"dropout_rate": 0.3, "deterministic": True},
    "alibi": {"alibi_slopes": "batch", "is_causal": True, "logits_soft_cap": 9.0},
    "everything": {
        "is_causal": True,
        "local_window_size": (60, 0),
        "sink_tokens": 3,
        "sinks": True,
        "alibi_slopes": "batch",
        "logits_soft_cap": 8.0,
        "bias": "bhq",
        "query_lengths": (60, 9, 3, 100),
        "kv_lengths": (90, 5, 17, 70),
        "segments": "packed",
        "dropout_rate": 0.1,
        "lse_cotangent": True,
    },
}

_LENGTHS = ((1, 1), (239, 1), (799, 3), (113, 203), (1023, 1024), (1024, 1023))
_EMPTY: dict[str, dict[str, Any]] = {
    "batch": {"batch": 0},
    "queries": {"query_length": 0, "key_length": 40},
    "keys": {"query_length": 40, "key_length": 0},
    "keys-sinks": {"query_length": 40, "key_length": 0, "sinks": True, "lse_cotangent": True},
    "both": {"query_length": 0, "key_length": 0, "is_causal": True},
    "rows": {"cu_seqlens_q": (0, 0, 0), "cu_seqlens_k": (0, 0, 0), "query_length": 0},
    "keys-varlen": {"cu_seqlens_q": (0, 7, 40), "cu_seqlens_k": (0, 0, 0), "key_length": 0},
}


def _option_cases() -> Iterator[AttentionCase]:
    """Options alone and mixed, on every dtype by turns; the mixes on all."""
    sizes: dict[str, Any] = {"query_length": 150, "key_length": 170}
    dtypes = itertools.cycle(_DTYPES)
    for name, options in _OPTIONS.items():
        yield AttentionCase(f"only-{name}", **sizes | {"dtype": next(dtypes)} | options)
    for name, options in _MIXES.items():
        for dtype in _DTYPES if name == "everything" else (next(dtypes),):
            yield AttentionCase(f"mix-{name}-{dtype}", **sizes | options, dtype=dtype)
    for name, options in _VARLEN.items():
        for dtype in _DTYPES if name == "everything" else (next(dtypes),):
            yield AttentionCase(f"varlen-{name}-{dtype}", **_PACKED | options, dtype=dtype)


def _size_cases() -> Iterator[AttentionCase]:
    """Head dimensions, query heads a key/value head, lengths."""
    everything = _MIXES["everything"]
    widths = (1, 8, 32, 40, 64, 80, 96, 100, 128, 160, 192, 256)
    for index, width in enumerate(widths):
        shape: dict[str, Any] = {"head_dim": width, "is_causal": bool(index % 2)}
        yield AttentionCase(f"head-dim-{width}-bfloat16", **shape, query_length=130)
        dtype = _DTYPES[1 + index % 2]
        yield AttentionCase(f"head-dim-{width}-{dtype}", **shape, query_length=90, dtype=dtype)
    for index, width in enumerate((32, 96, 128, 192, 256)):
        mixed = everything | {"head_dim": width, "dtype": _DTYPES[index % 3]}
        yield AttentionCase(f"head-dim-{width}-mix", query_length=150, key_length=170, **mixed)
    for width in (64, 96, 192, 256):
        options = {"head_dim": width, "dtype": "float32", "sinks": True, "bias": "q"}
        yield AttentionCase(f"head-dim-{width}-varlen", **_PACKED | options)
    for index, (width, values) in enumerate(((192, 128), (64, 128), (128, 64), (40, 72), (8, 256))):
        for dtype in ("bfloat16", _DTYPES[1 + index % 2]):
            yield AttentionCase(
                f"value-dim-{width}-{values}-{dtype}",
                head_dim=width,
                value_dim=values,
                dtype=dtype,
                query_length=130,
                key_length=140,
                is_causal=dtype == "bfloat16",
                lse_cotangent=True,
                deterministic=bool(index % 2),
            )
    for index, (kv_heads, group) in enumerate(((1, 1), (3, 1), (1, 2), (2, 3), (1, 8), (1, 17))):
        yield AttentionCase(
            f"heads-{kv_heads}-{group}",
            kv_heads=kv_heads,
            group=group,
            dtype=_DTYPES[index % 3],
            query_length=140,
            is_causal=True,
            head_dim=128 if index % 2 else 64,
        )
    for index, (queries, keys) in enumerate(_LENGTHS):
        long = max(queries, keys) > 1000
        for causal in (False, True):
            yield AttentionCase(
                f"lengths-{queries}-{keys}{'-causal' if causal else ''}",
                batch=1 if long else 2,
                kv_heads=1,
                query_length=queries,
                key_length=keys,
                is_causal=causal,
                head_dim=128 if causal else 64,
                dtype=_DTYPES[(index + causal) % 3],
                deterministic=bool(index % 2),
            )
    yield AttentionCase(
        "lengths-4224-4224", batch=1, kv_heads=1, group=1, query_length=4224, is_causal=True
    )
    yield AttentionCase(
        "lengths-1024-window",
        batch=1,
        kv_heads=1,
        query_length=1024,
        key_length=1100,
        local_window_size=(100, 30),
        sink_tokens=2,
    )
    # Every length around the tile sizes, as sequences of one pack.
    ends = tuple(itertools.accumulate((0, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129)))
    for causal in (False, True):
        yield AttentionCase(
            f"lengths-tiles{'-causal' if causal else ''}",
            query_length=ends[-1],
            kv_heads=1,
            head_dim=128,
            cu_seqlens_q=ends,
            cu_seqlens_k=tuple(ends[-1] - end for end in reversed(ends)),
            is_causal=causal,
        )


def _edge_cases() -> Iterator[AttentionCase]:
    """Nothing at all, and large logits."""
    for index, (name, options) in enumerate(_EMPTY.items()):
        yield AttentionCase(f"empty-{name}", dtype=_DTYPES[index % 3], **options)
    for dtype in _DTYPES:
        large: dict[str, Any] = {"query_factor": 5.0, "key_factor": 3.0, "dtype": dtype}
        yield AttentionCase(f"large-logits-{dtype}", query_length=300, kv_heads=1, **large)
        yield AttentionCase(
            f"large-logits-cap-{dtype}",
            query_length=200,
            kv_heads=1,
            is_causal=True,
            logits_soft_cap=20.0,
            **large,
        )


ATTENTION_CASES: tuple[AttentionCase, ...] = (*_option_cases(), *_size_cases(), *_edge_cases())


def attention_cases() -> SearchStrategy[AttentionCase]:
    """A hypothesis strategy of small random cases over every option (needs hypothesis)."""
    from hypothesis import strategies as st

    @st.composite
    def build(draw: st.DrawFn) -> AttentionCase:
        batch = draw(st.integers(1, 3))
        queries, keys = draw(st.integers(1, 200)), draw(st.integers(1, 200))
        options: dict[str, Any] = {}
        if draw(st.booleans()):
            for name, length in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys)):
                cuts = draw(st.tuples(*[st.integers(0, length)] * (batch + 1)))
                options[name] = tuple(sorted(cuts))
        size = st.none() | st.integers(0, 210)
        return AttentionCase(
            name="hypothesis",
            batch=batch,
            query_length=queries,
            key_length=keys,
            kv_heads=draw(st.integers(1, 2)),
            group=draw(st.integers(1, 5)),
            head_dim=draw(st.integers(1, 256)),
            value_dim=draw(st.none() | st.integers(1, 256)),
            dtype=draw(st.sampled_from(_DTYPES)),
            scale=draw(st.none() | st.floats(-0.5, 0.5, width=32)),
            is_causal=draw(st.booleans()),
            local_window_size=draw(st.none() | st.integers(0, 210) | st.tuples(size, size)),
            sink_tokens=draw(st.integers(0, 70)),
            sinks=draw(st.booleans()),
            alibi_slopes=draw(st.sampled_from((None, "head", "batch"))),
            logits_soft_cap=draw(st.none() | st.floats(1, 50, width=32)),
            bias=draw(st.none() | st.sampled_from(("", "b", "h", "q", "bh", "bq", "hq", "bhq"))),
            bias_dtype=draw(st.sampled_from((*_DTYPES, "bool"))),
            bias_hides=draw(st.booleans()),
            query_lengths=draw(st.none() | st.tuples(*[st.integers(-2, queries + 5)] * batch)),
            kv_lengths=draw(st.none() | st.tuples(*[st.integers(-2, keys + 5)] * batch)),
            segments=draw(st.sampled_from((None, "packed", "shuffled", "padded"))),
            dropout_rate=draw(st.sampled_from((0.0, 0.1, 0.6))),
            deterministic=draw(st.booleans()),
            lse_cotangent=draw(st.booleans()),
            **options,
        )

    return build()
