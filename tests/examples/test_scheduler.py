"""The serving scheduler, on a device of numpy: pages hold tokens, and reading them draws one."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.config import ServingConfig
from llama.paged import Batch
from llama.scheduler import Request, Scheduler, Stream, common_prefix

MAX_LENGTH = 48
NOTHING = -7  # in a page that was never written


sizes = partial(ServingConfig, page_size=4, max_length=MAX_LENGTH)


def next_token(history: np.ndarray) -> int:
    """Stands for a greedy model: a function of the whole history."""
    return hashlib.sha256(history.astype(np.uint8).tobytes()).digest()[0]


def answer(request: Request) -> bytes:
    """What the request gets on its own."""
    tokens = bytearray(request.prompt or b"\0")
    prompt = len(tokens)
    while len(tokens) < prompt + request.max_new_tokens:
        tokens.append(next_token(np.frombuffer(bytes(tokens), np.uint8)))
        if tokens[-1] == request.stop:
            break
    return bytes(tokens[prompt:])


class Device:
    """Does a step as ``serving_step`` does: all rows are written, then histories are read."""

    def __init__(self, config: ServingConfig) -> None:
        self.config = config
        self.store = np.full((config.num_pages, config.page_size), NOTHING)
        self.drawn = np.full(config.table_entries, NOTHING)

    def step(self, batch: Batch) -> np.ndarray:
        entry = np.maximum(~batch.tokens, 0)
        tokens = np.where(batch.tokens < 0, self.drawn[entry], batch.tokens)
        for token, entry, position in zip(
            tokens, batch.batch_indices, batch.positions, strict=True
        ):
            if entry >= 0:
                nth, row = divmod(int(position), self.config.page_size)
                self.store[self.pages(batch, entry)[nth], row] = token
        self.drawn = np.array(
            [self.draw(batch, entry) for entry in range(self.config.table_entries)]
        )
        return self.drawn

    def pages(self, batch: Batch, entry: int) -> np.ndarray:
        return batch.page_indices[slice(*batch.page_indptr[entry : entry + 2])]

    def draw(self, batch: Batch, entry: int) -> int:
        pages, last = self.pages(batch, entry), batch.last_page_len[entry]
        if not len(pages):
            return NOTHING
        history = self.store[pages].ravel()[: (len(pages) - 1) * self.config.page_size + last]
        return next_token(history) if (history >= 0).all() else NOTHING


def check_batch(batch: Batch, config: ServingConfig) -> None:
    """Shapes never change, decoding entries own the first rows, and chunks the next ones."""
    assert [array.shape for array in batch[:3]] == [(config.step_tokens,)] * 3
    decodes = int((np.diff(batch.page_indptr[: config.max_requests + 1]) > 0).sum())
    np.testing.assert_array_equal(batch.batch_indices[:decodes], np.arange(decodes))
    assert batch.chunk_indptr[0] == decodes
    for chunk, (begin, end) in enumerate(
        zip(batch.chunk_indptr, batch.chunk_indptr[1:], strict=False)
    ):
        assert (batch.batch_indices[begin:end] == config.max_requests + chunk).all()
    assert (batch.batch_indices[batch.chunk_indptr[-1] :] == -1).all()


def serve(config: ServingConfig, arrivals: list[tuple[int, Request]]) -> Scheduler:
    """Serves all requests, checks every answer, and returns the scheduler."""
    scheduler, device = Scheduler(config), Device(config)
    streams: list[Stream] = []
    ahead, steps = None, 0
    while len(streams) < len(arrivals) or scheduler.running or scheduler.waiting or ahead:
        while len(streams) < len(arrivals) and arrivals[len(streams)][0] <= steps:
            streams.append(scheduler.submit(arrivals[len(streams)][1]))
        plan, before = scheduler.plan(), ahead
        ahead = None
        if not plan.is_empty:
            batch = scheduler.batch(plan)
            check_batch(batch, config)
            ahead = (plan, device.step(batch))
        if before:
            scheduler.collect(*before)
        steps += 1
        assert steps < 2000, "nothing moves any more"
    for stream in streams:
        assert stream.generated == answer(stream.request)
    held = np.unique(np.concatenate([[], *map(scheduler.allocator.pages, ids(scheduler))]))
    assert len(held) + scheduler.allocator.free_pages == config.num_pages
    return scheduler


def ids(scheduler: Scheduler) -> list[int]:
    """Who has pages when all is done: those that ended and wait to be useful."""
    assert set(scheduler.allocator.requests) == {stream.pages for stream in scheduler.finished}
    return [stream.pages for stream in scheduler.finished]


PREFIXES = [b"", b"system: be brief\n", b"system: be brief\nuser: what is", b"system: "]


@st.composite
def workloads(draw: st.DrawFn) -> tuple[ServingConfig, list[tuple[int, Request]]]:
    page_size = draw(st.sampled_from([1, 2, 4, 16]))
    least = -(-MAX_LENGTH // page_size)
    config = sizes(
        page_size=page_size,
        num_pages=least + draw(st.integers(0, 2 * least)),
        max_requests=draw(st.integers(1, 6)),
        max_prompts=draw(st.integers(1, 3)),
        chunk_tokens=draw(st.integers(1, 24)),
    )
    requests = st.builds(
        Request,
        prompt=st.builds(bytes.__add__, st.sampled_from(PREFIXES), st.binary(max_size=8)),
        max_new_tokens=st.integers(1, 10),
        stop=st.integers(0, 255),
    )
    gaps = draw(st.lists(st.tuples(st.integers(0, 6), requests), min_size=1, max_size=12))
    steps = np.cumsum([gap for gap, _ in gaps]).tolist()
    return config, [(step, request) for step, (_, request) in zip(steps, gaps, strict=True)]


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_every_request_gets_what_it_gets_alone(
    workload: tuple[ServingConfig, list[tuple[int, Request]]],
) -> None:
    serve(*workload)


def requests(count: int, prefix: bytes = b"", length: int = 12, new: int = 20) -> list[Request]:
    return [
        Request(prefix + bytes([i] * (length - len(prefix))), new, stop=-1) for i in range(count)
    ]


def test_the_youngest_is_preempted_when_pages_run_out() -> None:
    config = sizes(num_pages=14, max_requests=4, chunk_tokens=64)
    scheduler = Scheduler(config)
    first, second, third = map(scheduler.submit, requests(3))
    device, order = Device(config), []
    while scheduler.running or scheduler.waiting:
        plan = scheduler.plan()
        scheduler.collect(plan, device.step(scheduler.batch(plan)))
        order += [s for s in (first, second, third) if s.ended and s not in order]
        assert first.pages is not None or first.ended  # the oldest never gives way
    assert scheduler.counters.preemptions > 0
    assert order == [first, second, third]
    assert all(s.generated == answer(s.request) for s in order)


@pytest.mark.parametrize("made", range(14, 19))
def test_a_stop_that_comes_after_preemption_counts(made: int) -> None:
    """The token that is on its way when its request loses its pages may be the last one."""
    config = sizes(num_pages=14, max_requests=4)
    first, second = requests(2)
    stop = answer(second)[made]
    second = dataclasses.replace(second, stop=stop)
    assert serve(config, [(0, first), (0, second)]).counters.preemptions <= 1


def test_a_common_prefix_is_computed_once() -> None:
    config = sizes(num_pages=64, max_requests=8, max_prompts=8)
    prefix = b"0123456789"  # two whole pages and a half
    arrivals = [(step, request) for step, request in enumerate(requests(5, prefix, new=2))]
    counters = serve(config, arrivals).counters
    assert counters.shared == 4 * 8
    assert counters.computed == 5 * (12 + 1) - 4 * 8
    # Also when all come at once, and share a prefix that the very step computes.
    together = serve(config, [(0, request) for _, request in arrivals]).counters
    assert together == counters


def test_a_finished_request_is_kept_to_share_and_given_up_for_pages() -> None:
    config = sizes(num_pages=12, max_requests=2)
    first, *_, other = requests(3, b"01234567", new=2)
    scheduler = serve(config, [(0, first), (30, other)])
    assert scheduler.counters.shared == 8
    strangers = [(60 + i, r) for i, r in enumerate(requests(4, length=20, new=4))]
    scheduler = serve(config, [(0, first), *strangers, (100, other)])
    assert scheduler.counters.shared == 0
    assert scheduler.counters.preemptions == 0


@pytest.mark.parametrize("length", [11, 12, 13])
def test_a_conversation_goes_on_from_its_pages(length: int) -> None:
    """All that was computed is shared: what came before the last token drawn."""
    config = sizes(num_pages=64, max_requests=2)
    first = Request(b"x" * (length - 4), 4, stop=-1)
    second = Request(first.prompt + answer(first) + b"and then", 4, stop=-1)
    counters = serve(config, [(0, first), (30, second)]).counters
    assert counters.shared == (length - 1) // 4 * 4


def test_a_long_prompt_does_not_hold_up_those_that_decode() -> None:
    config = sizes(num_pages=64, max_requests=4, chunk_tokens=3)
    scheduler, device = Scheduler(config), Device(config)
    short, long = Request(b"ab", 30, stop=-1), Request(b"x" * 30, 2, stop=256)
    streams = [scheduler.submit(short), scheduler.submit(long)]
    for step in range(12):
        plan = scheduler.plan()
        scheduler.collect(plan, device.step(scheduler.batch(plan)))
        assert len(streams[0].generated) == step + 1
        assert len(streams[1].generated) == max(0, step - 9)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request(b"x" * 40, 9), "40 bytes and 9 new ones exceed 48"),
        (Request(b"x", 0), "max_new_tokens=0"),
    ],
)
def test_what_can_never_be_served_is_refused(request_: Request, complaint: str) -> None:
    scheduler = Scheduler(sizes())
    with pytest.raises(ValueError, match=complaint):
        scheduler.submit(request_)
    with pytest.raises(ValueError, match="num_pages=0"):
        ServingConfig(num_pages=0)


def test_common_prefix() -> None:
    assert common_prefix(b"", b"a") == 0
    assert common_prefix(b"abc", b"abd") == 2
    assert common_prefix(b"abc", bytearray(b"abcd")) == 3
