"""The tables of append and rotation cases, and the inputs of a case."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
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
_LAYOUTS = ("HND", "NHD")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@dataclasses.dataclass(frozen=True)
class AppendCase:
    """One call of ``paged_append`` (``page_size`` given) or ``kv_cache_append``.

    Request b has ``lengths[b]`` rows and gets ``new[b]`` more; those of a cache all get the same
    number, and may begin anywhere. ``layers`` of None leaves ``layer`` out of the call.
    ``misplaced`` adds tokens of every kind that is dropped.
    """

    name: str
    page_size: int | None = None
    capacity: int = 40
    lengths: tuple[int, ...] = (5, 0, 17)
    new: tuple[int, ...] = (1, 1, 1)
    misplaced: bool = False
    dtype: str = "bfloat16"
    kv_layout: str = "HND"
    kv_heads: int = 2
    query_heads: int = 0
    head_dim: int = 64
    value_dim: int | None = None
    rope: Mapping[str, Any] | None = None
    layers: int | None = None
    layer: int = 0

    @property
    def function(self) -> str:
        """The public function."""
        return "kv_cache_append" if self.page_size is None else "paged_append"

    @property
    def numpy_dtype(self) -> Any:
        """The scalar type of all rows."""
        return _DTYPES[self.dtype]

    @property
    def table(self) -> tuple[int, ...]:
        """How many pages each request has: one more than it needs."""
        assert self.page_size is not None
        totals = map(sum, zip(self.lengths, self.new, strict=True))
        return tuple(-(-total // self.page_size) + 1 for total in totals)

    def store_shape(self, dim: int) -> tuple[int, ...]:
        """Of a store with rows of ``dim``; of its pages, three belong to no request."""
        if self.page_size is None:
            slots, rows = len(self.lengths), self.capacity
        else:
            slots, rows = sum(self.table) + 3, self.page_size
        middle = (rows, self.kv_heads) if self.kv_layout == "NHD" else (self.kv_heads, rows)
        return (*([] if self.layers is None else [self.layers]), slots, *middle, dim)

    def rows_shape(self, heads: int, dim: int, tokens: int) -> tuple[int, ...]:
        """Of new rows."""
        if self.page_size is not None:
            return tokens, heads, dim
        middle = (tokens, heads) if self.kv_layout == "NHD" else (heads, tokens)
        return (len(self.lengths), *middle, dim)


@dataclasses.dataclass(frozen=True)
class AppendInputs:
    """The operands of one call, on the host, and where its tokens go.

    Attributes:
      arrays: by the names of the function's arguments.
      places: (slot, row) of every token, None for a dropped one; tokens of a cache are numbered
        request by request.
      positions: of every token.
    """

    arrays: dict[str, np.ndarray]
    places: list[tuple[int, int] | None]
    positions: np.ndarray


def make_append_inputs(case: AppendCase, seed: int = 0) -> AppendInputs:
    """Draws the inputs of a case. Half of what is in the stores is NaN.

    Args:
      case: the case.
      seed: another seed gives other numbers, pages and orders.

    Returns:
      Arrays of the case's shapes and dtypes.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    value_dim = case.head_dim if case.value_dim is None else case.value_dim
    integers, places, positions = _paged(case, rng) if case.page_size else _cached(case)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(case.numpy_dtype)

    tokens = len(positions) if case.page_size else case.new[0]
    names = {"paged_append": ("k_pages", "v_pages"), "kv_cache_append": ("k_cache", "v_cache")}
    arrays = {}
    for name, dim in zip(names[case.function], (case.head_dim, value_dim), strict=True):
        arrays[name] = normal(case.store_shape(dim))
        arrays[name][rng.random(arrays[name].shape) < 0.5] = np.nan
    arrays["key"] = normal(case.rows_shape(case.kv_heads, case.head_dim, tokens))
    arrays["value"] = normal(case.rows_shape(case.kv_heads, value_dim, tokens))
    if case.query_heads:
        arrays["query"] = normal(case.rows_shape(case.query_heads, case.head_dim, tokens))
    if case.layers is not None:
        integers["layer"] = np.int32(case.layer)
        if not 0 <= case.layer < case.layers:
            places = [None] * len(places)
    return AppendInputs(arrays | integers, places, positions)


_Drawn = tuple[dict[str, Any], list[tuple[int, int] | None], np.ndarray]


def _paged(case: AppendCase, rng: np.random.Generator) -> _Drawn:
    """A page table of shuffled pages, and tokens in any order."""
    assert case.page_size is not None
    indptr = np.cumsum([0, *case.table]).astype(np.int32)
    pages = int(indptr[-1]) + 3
    indices = rng.permutation(pages)[: indptr[-1]].astype(np.int32)
    tokens: list[tuple[int, int, tuple[int, int] | None]] = []
    for request, (length, new) in enumerate(zip(case.lengths, case.new, strict=True)):
        for position in range(length, length + new):
            page = indices[indptr[request] + position // case.page_size]
            tokens.append((request, position, (int(page), position % case.page_size)))
    if case.misplaced:
        last, big = len(case.lengths), 2**31 - 1
        bad = np.array([-1, pages, -(2**31), big], np.int32)
        indices = np.concatenate([indices, bad])  # one more request, whose pages do not exist
        indptr = np.append(indptr, np.int32(len(indices)))
        past = case.table[0] * case.page_size
        outside = [(-1, 0), (last + 1, 0), (-(2**31), 3), (big, 3), (0, -1), (0, past), (0, big)]
        outside += [(last, i * case.page_size) for i in range(len(bad))]
        tokens += [(request, position, None) for request, position in outside]
    order = rng.permutation(len(tokens))
    requests = np.array([tokens[i][0] for i in order], np.int32)
    positions = np.array([tokens[i][1] for i in order], np.int32)
    table = {"batch_indices": requests, "positions": positions, "page_indices": indices}
    return table | {"page_indptr": indptr}, [tokens[i][2] for i in order], positions


def _cached(case: AppendCase) -> _Drawn:
    """Lengths; a row outside the cache is dropped."""
    lengths = np.array(case.lengths, np.int32)
    positions = (lengths.astype(np.int64)[:, None] + np.arange(case.new[0])).reshape(-1)
    places: list[tuple[int, int] | None] = [
        (index // case.new[0], int(position)) if 0 <= position < case.capacity else None
        for index, position in enumerate(positions)
    ]
    return {"lengths": lengths}, places, positions.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class RopeCase:
    """One call of ``apply_rope`` on x of ``shape``, [..., H, D].

    Positions are ``first``, ``first + step``, ... over all leading dimensions.
    """

    name: str
    shape: tuple[int, ...] = (2, 7, 3, 64)
    dtype: str = "bfloat16"
    first: int = 0
    step: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def numpy_dtype(self) -> Any:
        """The scalar type of x."""
        return _DTYPES[self.dtype]

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """x and positions."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        lead = self.shape[:-2]
        x = rng.standard_normal(self.shape, np.float32).astype(self.numpy_dtype)
        positions = self.first + self.step * np.arange(np.prod(lead, dtype=np.int64))
        return x, positions.astype(np.int32).reshape(lead)


def _append_cases() -> tuple[AppendCase, ...]:
    cases: list[AppendCase] = []

    def add(name: str, **fields: Any) -> None:
        cases.append(AppendCase(name, **fields))

    # Everything at once, for each dtype, layout and function.
    for number, dtype in enumerate(_DTYPES):
        for layout in _LAYOUTS:
            both = dict(dtype=dtype, kv_layout=layout, head_dim=128, kv_heads=8, layers=3, layer=1)
            turn = dict(query_heads=32, rope={"interleaved": number % 2 == 0, "scaling": LLAMA3})
            add(f"pages-{dtype}-{layout}", page_size=16, misplaced=True, **both, **turn)
            add(f"cache-{dtype}-{layout}", lengths=(5, 0, 39), new=(3,) * 3, **both, **turn)
            add(f"pages-copy-{dtype}-{layout}", page_size=16, **both)
            add(f"cache-copy-{dtype}-{layout}", **both)

    # Head dimensions: vectors, vectors in part, element by element; K and V of their own.
    dims = [(1, 2), (2, 1), (6, 6), (80, 80), (96, 64), (64, 33), (200, 256), (256, 256), (520, 8)]
    for number, (head_dim, value_dim) in enumerate(dims):
        rope = None if head_dim % 2 else {"interleaved": number % 3 == 1}
        add(
            f"dims-{head_dim}-{value_dim}",
            page_size=4 if number % 2 else None,
            kv_layout=_LAYOUTS[number // 2 % 2],
            dtype=list(_DTYPES)[number % 3],
            head_dim=head_dim,
            value_dim=value_dim,
            kv_heads=1 + number % 3,
            query_heads=3 if rope else 0,
            rope=rope,
        )

    # Rotations of a part of the columns.
    for dtype, width in (("bfloat16", 32), ("float32", 6), ("float16", 48), ("float16", 2)):
        for interleaved in (False, True):
            add(
                f"rotary-{width}-{dtype}-{'neighbours' if interleaved else 'halves'}",
                page_size=8,
                dtype=dtype,
                query_heads=5,
                rope={"rotary_dim": width, "interleaved": interleaved, "scaling": YARN},
            )
    add("rope-without-query", page_size=2, rope={"theta": 500000.0})
    add("rope-of-a-cache-without-query", rope={}, kv_layout="NHD", new=(4,) * 3)

    # Pages.
    for page_size in (1, 3, 64):
        add(f"page-size-{page_size}", page_size=page_size, new=(5, 9, 0), misplaced=True)
    add("no-tokens", page_size=4, lengths=(), new=())
    add("no-new-tokens", page_size=4, new=(0, 0, 0), rope={}, query_heads=2)
    add("one-of-everything", page_size=1, lengths=(0,), new=(1,), kv_heads=1, head_dim=1)
    add("many-tokens", page_size=16, lengths=(0, 100), new=(300, 77), kv_heads=3, head_dim=32)
    add("many-heads", page_size=4, kv_heads=40, query_heads=70, rope={}, head_dim=32)

    # Caches: rows before the first and past the last.
    add("cache-ends", lengths=(38, 40, 41, -1, -9, 2**31 - 2), new=(4,) * 6, rope={}, query_heads=2)
    add("cache-of-one-row", capacity=1, lengths=(0, 1), new=(1, 1), head_dim=8)
    add("cache-without-rows", capacity=0)
    add("cache-without-requests", lengths=(), new=(2,), layers=2)
    add("no-such-layer", layers=2, layer=2)
    add("no-such-layer-of-pages", layers=2, layer=-1, page_size=8, rope={}, query_heads=1)
    return tuple(cases)


def _rope_cases() -> tuple[RopeCase, ...]:
    cases: list[RopeCase] = []
    for dtype in _DTYPES:
        for interleaved in (False, True):
            options: dict[str, Any] = {"interleaved": interleaved}
            name = f"{dtype}-{'neighbours' if interleaved else 'halves'}"
            cases += [
                RopeCase(name, dtype=dtype, options=options),
                RopeCase(f"part-{name}", dtype=dtype, options=options | {"rotary_dim": 16}),
                RopeCase(f"odd-{name}", (5, 2, 13), dtype, options=options | {"rotary_dim": 10}),
                RopeCase(f"wide-{name}", (3, 5, 2, 256), dtype, options=options | {"theta": 5e5}),
            ]
    for first, step in ((10**6, 12345), (2**31 - 14, 1), (-5, 1), (2**24 + 1, 2)):
        cases.append(RopeCase(f"from-{first}", dtype="float32", first=first, step=step))
    for scaling in (LLAMA3, YARN, {"type": "linear", "factor": 2.0}, {"rope_type": "default"}):
        kind = scaling.get("rope_type", "linear")
        options = {"scaling": scaling, "theta": 500000.0}
        cases.append(RopeCase(f"scaling-{kind}", dtype="float32", step=997, options=options))
    cases += [
        RopeCase("no-leading-dimension", (3, 8), "float32", first=4),
        RopeCase("no-tokens", (0, 3, 8)),
        RopeCase("no-heads", (4, 0, 8)),
        RopeCase("many-heads", (3, 130, 64)),
        RopeCase("many-tokens", (700, 1, 128), "float16"),
    ]
    return tuple(cases)


APPEND_CASES = _append_cases()
ROPE_CASES = _rope_cases()


def append_cases() -> SearchStrategy[AppendCase]:
    """A hypothesis strategy of small random cases over every option (needs hypothesis)."""
    from hypothesis import strategies as st

    @st.composite
    def build(draw: st.DrawFn) -> AppendCase:
        paged = draw(st.booleans())
        batch = draw(st.integers(1, 4))
        counts = st.tuples(*[st.integers(0, 30)] * batch)
        head_dim = draw(st.integers(1, 80))
        pairs = head_dim // 2
        rope = None
        if pairs and draw(st.booleans()):
            width = 2 * draw(st.integers(1, pairs))
            rope = {"rotary_dim": width, "interleaved": draw(st.booleans())}
        layers = draw(st.none() | st.integers(1, 3))
        return AppendCase(
            name="hypothesis",
            page_size=draw(st.integers(1, 9)) if paged else None,
            capacity=draw(st.integers(0, 40)),
            lengths=draw(counts),
            new=draw(counts) if paged else (draw(st.integers(0, 9)),) * batch,
            misplaced=draw(st.booleans()),
            dtype=draw(st.sampled_from(sorted(_DTYPES))),
            kv_layout=draw(st.sampled_from(_LAYOUTS)),
            kv_heads=draw(st.integers(1, 9)),
            query_heads=draw(st.integers(0, 9)) if rope else 0,
            head_dim=head_dim,
            value_dim=draw(st.none() | st.integers(1, 80)),
            rope=rope,
            layers=layers,
            layer=draw(st.integers(-1, layers)) if layers else 0,
        )

    return build()
