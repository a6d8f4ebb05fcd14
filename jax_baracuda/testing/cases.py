"""The one table of decode cases, and the inputs of a case."""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_DTYPES: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}


@dataclasses.dataclass(frozen=True)
class DecodeCase:
    """One call of ``flash_decode``: sizes, options and how its inputs are drawn.

    ``lengths`` of None leaves ``kv_lengths`` out of the call; otherwise one number a request, which
    may be negative or larger than the cache. ``alibi_slopes`` is "head" for [Hq] slopes, "request"
    for [B, Hq]. Queries and keys are normal numbers times ``query_factor`` and ``key_factor``.
    """

    name: str
    batch: int = 2
    kv_heads: int = 2
    group: int = 4
    capacity: int = 130
    head_dim: int = 64
    dtype: str = "bfloat16"
    kv_layout: str = "HND"
    lengths: tuple[int, ...] | None = None
    scale: float | None = None
    local_window_size: int | tuple[int, int] | None = None
    sink_tokens: int = 0
    sinks: bool = False
    alibi_slopes: str | None = None
    logits_soft_cap: float | None = None
    num_splits: int | None = None
    query_factor: float = 1.0
    key_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.lengths is not None and len(self.lengths) != self.batch:
            raise ValueError(f"{self.name}: {len(self.lengths)} lengths for {self.batch} requests.")

    @property
    def query_heads(self) -> int:
        """Hq."""
        return self.kv_heads * self.group

    @property
    def numpy_dtype(self) -> Any:
        """The scalar type of query, key and value."""
        return _DTYPES[self.dtype]

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """The shape of key and value in the layout of the case."""
        if self.kv_layout == "NHD":
            return (self.batch, self.capacity, self.kv_heads, self.head_dim)
        return (self.batch, self.kv_heads, self.capacity, self.head_dim)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``flash_decode`` that are not arrays."""
        return {
            "kv_layout": self.kv_layout,
            "scale": self.scale,
            "local_window_size": self.local_window_size,
            "sink_tokens": self.sink_tokens,
            "logits_soft_cap": self.logits_soft_cap,
            "num_splits": self.num_splits,
        }

    def visible(self) -> np.ndarray:
        """Which cache rows a request's query sees: bool [B, K]."""
        mask = np.zeros((self.batch, self.capacity), bool)
        window = self.local_window_size
        for request in range(self.batch):
            length = self.capacity if self.lengths is None else self.lengths[request]
            length = min(max(length, 0), self.capacity)
            first = 0
            if window is not None:
                left = window if isinstance(window, int) else window[0]
                first = max(0, length - 1 - left)
            mask[request, first:length] = True
            mask[request, : min(self.sink_tokens, length)] = True
        return mask


@dataclasses.dataclass(frozen=True)
class DecodeInputs:
    """The array operands of one call, on the host."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    kv_lengths: np.ndarray | None
    sinks: np.ndarray | None
    alibi_slopes: np.ndarray | None

    def arrays(self) -> dict[str, np.ndarray | None]:
        """The operands by the names of ``flash_decode``'s arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def make_inputs(case: DecodeCase, seed: int = 0) -> DecodeInputs:
    """Draws the inputs of a case. Cache rows that no query sees hold NaN and infinity.

    Args:
      case: the case.
      seed: another seed gives other numbers.

    Returns:
      Arrays of the case's shapes and dtypes.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    dtype = case.numpy_dtype
    heads = case.query_heads

    def normal(shape: tuple[int, ...], factor: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * factor).astype(dtype)

    query = normal((case.batch, heads, case.head_dim), case.query_factor)
    key = normal(case.cache_shape, case.key_factor)
    value = normal(case.cache_shape)

    # Rows by request and position, whatever the layout: a view, so the poison lands in the caches.
    poison = np.where(np.arange(case.capacity) % 2, np.inf, np.nan).astype(dtype)
    hidden = ~case.visible()
    for cache in (key, value):
        rows = cache if case.kv_layout == "NHD" else cache.swapaxes(1, 2)
        for request in range(case.batch):
            rows[request, hidden[request]] = poison[hidden[request], None, None]

    slopes = None
    if case.alibi_slopes is not None:
        slopes = np.exp2(-8.0 * np.arange(1, heads + 1) / heads).astype(np.float32)
        if case.alibi_slopes == "request":
            slopes = slopes * np.linspace(0.5, 2, case.batch, dtype=np.float32)[:, None]
    return DecodeInputs(
        query,
        key,
        value,
        None if case.lengths is None else np.asarray(case.lengths, np.int32),
        rng.normal(0, 3, heads).astype(np.float32) if case.sinks else None,
        slopes,
    )


def _decode_cases() -> tuple[DecodeCase, ...]:
    cases: list[DecodeCase] = []
    dtypes = ("bfloat16", "float16", "float32")
    layouts = ("HND", "NHD")

    def add(name: str, **fields: Any) -> None:
        cases.append(DecodeCase(name, **fields))

    # Options on one plain shape, dtype by dtype and layout by layout.
    for dtype in dtypes:
        for layout in layouts:
            add(f"plain-{dtype}-{layout}", dtype=dtype, kv_layout=layout, head_dim=128)
            add(
                f"everything-{dtype}-{layout}",
                dtype=dtype,
                kv_layout=layout,
                batch=3,
                capacity=300,
                lengths=(300, 1, 171),
                scale=0.2,
                local_window_size=(70, 3),
                sink_tokens=5,
                sinks=True,
                alibi_slopes="request",
                logits_soft_cap=8.0,
            )

    # Every kind of head dimension: odd, not a multiple of 8, between the usual sizes.
    for index, head_dim in enumerate(
        (1, 2, 3, 7, 8, 16, 31, 40, 72, 80, 96, 100, 129, 160, 192, 200, 255, 256)
    ):
        add(
            f"head-dim-{head_dim}",
            head_dim=head_dim,
            dtype=dtypes[index % 3],
            kv_layout=layouts[index % 2],
            lengths=(130, 77),
            group=2,
        )
    add("head-dim-80-bfloat16", head_dim=80, lengths=(130, 77))
    add("head-dim-192-bfloat16", head_dim=192, lengths=(130, 77), kv_layout="NHD")
    add("head-dim-256-bfloat16", head_dim=256, lengths=(130, 77), group=8, capacity=600)

    # Query heads a key/value head.
    for index, group in enumerate((1, 2, 3, 7, 8, 16, 32, 64, 71, 128)):
        add(
            f"group-{group}",
            group=group,
            kv_heads=1 + index % 2,
            capacity=200,
            lengths=(200, 65),
            dtype=("bfloat16", "float16")[index % 2],
            kv_layout=layouts[index % 2],
        )
    add("group-71-head-dim-256", group=71, kv_heads=1, head_dim=256, lengths=(130, 3))
    add("group-128-float32", group=128, kv_heads=1, dtype="float32", head_dim=100)
    add("one-of-everything", batch=1, kv_heads=1, group=1, capacity=1, head_dim=1)

    # Cache sizes around the tile and split sizes.
    for index, capacity in enumerate((0, 1, 15, 63, 64, 65, 127, 1000, 4097)):
        add(
            f"capacity-{capacity}",
            capacity=capacity,
            head_dim=128,
            kv_layout=layouts[index % 2],
            dtype="float16" if index % 4 == 3 else "bfloat16",
        )
    add("capacity-4097-float32", capacity=4097, dtype="float32", lengths=(4097, 4000))

    # Lengths: none, one, past the cache, negative.
    add("length-zero", batch=3, lengths=(0, 130, 0))
    add("length-all-zero", lengths=(0, 0), kv_layout="NHD")
    add("length-zero-sinks", batch=3, lengths=(0, 5, 130), sinks=True, alibi_slopes="head")
    add("length-zero-splits", batch=3, lengths=(0, 1, 130), num_splits=7, dtype="float32")
    add("length-clamped", batch=5, lengths=(131, 2**31 - 1, -1, -(2**31), 129))
    add(
        "length-clamped-window", batch=3, lengths=(1000, -7, 64), local_window_size=9, sink_tokens=2
    )
    add("length-ragged", batch=33, capacity=257, lengths=tuple((37 * i) % 258 for i in range(33)))
    add(
        "length-ragged-float32",
        batch=9,
        capacity=520,
        dtype="float32",
        kv_layout="NHD",
        lengths=(1, 520, 0, 519, 64, 65, 63, 128, 257),
    )
    add("batch-zero", batch=0)
    add("batch-zero-lengths", batch=0, lengths=())

    # Windows, with and without sink tokens; either may cover more than there is.
    for window in (0, 1, 63, 64, 100):
        add(f"window-{window}", capacity=300, lengths=(300, 150), local_window_size=window)
    add("window-pair", capacity=300, lengths=(300, 80), local_window_size=(17, 0))
    add("window-past-the-cache", local_window_size=1000, lengths=(130, 4))
    add("window-long", batch=1, capacity=4097, local_window_size=1500, kv_layout="NHD")
    for sink_tokens in (1, 4, 64, 65, 1000):
        add(
            f"sink-tokens-{sink_tokens}",
            capacity=300,
            lengths=(300, 41),
            sink_tokens=sink_tokens,
            local_window_size=31,
        )
    add(
        "sink-tokens-far",
        capacity=1500,
        lengths=(1500, 700),
        sink_tokens=3,
        num_splits=5,
        local_window_size=(100, 0),
    )
    add("sink-tokens-no-window", sink_tokens=4, lengths=(130, 2))

    # Logits.
    add("sinks", sinks=True, lengths=(130, 1))
    add("sinks-large-scale", sinks=True, scale=2.0, dtype="float16")
    add("alibi-head", alibi_slopes="head", lengths=(130, 50))
    add("alibi-request-float32", alibi_slopes="request", lengths=(130, 50), dtype="float32")
    add("alibi-long", alibi_slopes="head", capacity=4097, batch=1, group=7)
    add("soft-cap-30", logits_soft_cap=30.0, scale=1.0)
    add("soft-cap-1", logits_soft_cap=1.0, scale=1.0, dtype="float16", group=3)
    add("soft-cap-float32", logits_soft_cap=5.0, scale=1.0, dtype="float32", lengths=(130, 64))
    add("scale-zero", scale=0.0)
    add("scale-negative", scale=-0.3, lengths=(130, 7))
    for dtype in dtypes:
        add(
            f"large-logits-{dtype}",
            dtype=dtype,
            query_factor=5.0,
            key_factor=3.0,
            capacity=1000,
            head_dim=128,
            lengths=(1000, 333),
        )
    add(
        "large-logits-soft-cap",
        query_factor=5.0,
        key_factor=3.0,
        logits_soft_cap=20.0,
        capacity=600,
    )

    # A fixed number of splits, also more than there are rows.
    for splits in (1, 2, 3, 7, 16, 64, 128, 133):
        add(
            f"splits-{splits}",
            batch=3,
            capacity=1000,
            head_dim=128,
            lengths=(1000, 0, 130),
            num_splits=splits,
            kv_layout=layouts[splits % 2],
        )
    add("splits-133-short", capacity=65, lengths=(65, 2), num_splits=133, sinks=True)
    add(
        "splits-9-float32", capacity=700, dtype="float32", lengths=(700, 699), num_splits=9, group=5
    )
    add("serving", batch=1, kv_heads=8, capacity=8192, head_dim=128)
    add("splits-chosen-long", batch=1, capacity=4097, kv_heads=1, head_dim=128)
    return tuple(cases)


DECODE_CASES: tuple[DecodeCase, ...] = _decode_cases()


def decode_cases() -> SearchStrategy[DecodeCase]:
    """A hypothesis strategy of small random cases over every option (needs hypothesis)."""
    from hypothesis import strategies as st

    @st.composite
    def build(draw: st.DrawFn) -> DecodeCase:
        batch = draw(st.integers(1, 4))
        capacity = draw(st.integers(1, 400))
        return DecodeCase(
            name="hypothesis",
            batch=batch,
            kv_heads=draw(st.integers(1, 3)),
            group=draw(st.integers(1, 20)),
            capacity=capacity,
            head_dim=draw(st.integers(1, 256)),
            dtype=draw(st.sampled_from(sorted(_DTYPES))),
            kv_layout=draw(st.sampled_from(("HND", "NHD"))),
            lengths=draw(st.none() | st.tuples(*[st.integers(-2, capacity + 5)] * batch)),
            scale=draw(st.none() | st.floats(-0.5, 0.5, width=32)),
            local_window_size=draw(st.none() | st.integers(0, capacity + 2)),
            sink_tokens=draw(st.integers(0, 70)),
            sinks=draw(st.booleans()),
            alibi_slopes=draw(st.sampled_from((None, "head", "request"))),
            logits_soft_cap=draw(st.none() | st.floats(1, 50, width=32)),
            num_splits=draw(st.none() | st.integers(1, 140)),
        )

    return build()
