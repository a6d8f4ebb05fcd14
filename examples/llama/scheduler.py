"""Which rows the next step computes, and in which pages they go: continuous batching's books.

Pure bookkeeping in numpy. The rules (continuous batching: Yu et al., "Orca", 2022; pages: Kwon et
al., 2023, arXiv:2309.06180):

- First come, first served. Every request that decodes has a row in every step; what prompts there
  are share a fixed number of further rows, in chunks.
- Pages are taken as tokens come. When none is left, finished requests give up theirs first, the
  least recently used before the others, then the youngest running request: its tokens are kept,
  and computed again when its turn comes. The oldest always gets on, so everything ends.
- Requests share the whole pages of a common prefix, with running and with finished requests. A
  shared page is full: nobody writes to it, and none is ever copied.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import NamedTuple

import numpy as np

from jax_baracuda.paged import OutOfPagesError, PageAllocator

from .config import ServingConfig
from .data import END_OF_TEXT
from .paged import Batch


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: up to ``max_new_tokens`` bytes after the prompt, or until ``stop``.

    An empty prompt becomes the byte between two files, as in ``decoding.pad_prompts``.
    """

    prompt: bytes
    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    stop: int = END_OF_TEXT  # -1: none


@dataclasses.dataclass(eq=False)
class Stream:
    """A request on its way: ``tokens`` is its prompt and all that was drawn and is on the host."""

    request: Request
    tokens: bytearray = dataclasses.field(init=False)
    pages: int | None = None  # its id in the allocator, while it has one
    in_flight: int = 0  # tokens that are drawn on the device and not here yet
    drawn_at: int = 0  # the entry of the last step's table that drew it
    ended: bool = False

    def __post_init__(self) -> None:
        self.tokens = bytearray(self.request.prompt or bytes([END_OF_TEXT]))
        self.prompt_length = len(self.tokens)

    @property
    def generated(self) -> bytes:
        """All bytes after the prompt so far, the one that ended it included."""
        return bytes(self.tokens[self.prompt_length :])

    @property
    def answer(self) -> bytes:
        """What was generated, without the byte that ended it."""
        made = self.generated
        return made[:-1] if made and made[-1] == self.request.stop else made

    @property
    def total(self) -> int:
        """Tokens so far, those on their way included."""
        return len(self.tokens) + self.in_flight

    @property
    def is_complete(self) -> bool:
        """Whether no further token is to be drawn, unless it stopped before."""
        return self.total - self.prompt_length >= self.request.max_new_tokens


class Rows(NamedTuple):
    """A stream's rows of a step. A token ~e is the one that entry e of the last step drew."""

    stream: Stream
    tokens: list[int]


@dataclasses.dataclass
class Plan:
    """What a step computes, and who draws a token in it."""

    decodes: list[Rows] = dataclasses.field(default_factory=list)
    chunks: list[Rows] = dataclasses.field(default_factory=list)
    draws: dict[int, Stream] = dataclasses.field(default_factory=dict)  # by entry of the table

    @property
    def chunk_rows(self) -> int:
        return sum(len(rows.tokens) for rows in self.chunks)

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.chunks


@dataclasses.dataclass
class Counters:
    """What was done."""

    computed: int = 0  # rows
    shared: int = 0  # tokens of prompts that were there already
    preemptions: int = 0


class Scheduler:
    """Turns requests into steps.

    ``plan`` gives a step and ``collect`` takes what it drew. One step may be on its way while the
    next is planned: ``plan``, ``plan``, ``collect``, ``plan``, ``collect``, and so on.

    """

    def __init__(self, config: ServingConfig) -> None:
        self.config = config
        self.allocator = PageAllocator(
            config.num_pages,
            config.page_size,
            max_requests=config.table_entries,
            max_pages=config.max_requests * config.pages_of(config.max_length),
        )
        self.waiting: deque[Stream] = deque()  # oldest first, all younger than the running ones
        self.running: list[Stream] = []  # oldest first
        self.finished: list[Stream] = []  # those that have pages yet, least recently used first
        self.counters = Counters()

    def submit(self, request: Request) -> Stream:
        """Puts a request in the queue. Raises ValueError if it could never be served."""
        stream = Stream(request)
        length = stream.prompt_length + request.max_new_tokens
        room = min(self.config.max_length, self.config.num_pages * self.config.page_size)
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={request.max_new_tokens} must be at least 1")
        if length > room:
            raise ValueError(
                f"a prompt of {stream.prompt_length} bytes and {request.max_new_tokens} new ones "
                f"exceed {room}, for which there is room"
            )
        self.waiting.append(stream)
        return stream

    def plan(self) -> Plan:
        """The next step. It may be empty: then there is nothing to compute before ``collect``."""
        plan = Plan()
        for stream in list(self.running):
            if stream.pages is not None:  # not preempted by an older one just now
                self._schedule(stream, plan)
        self._admit(plan)
        first_chunk = self.config.max_requests
        for first, entries in ((0, plan.decodes), (first_chunk, plan.chunks)):
            for entry, rows in enumerate(entries, first):
                self.counters.computed += len(rows.tokens)
                if self._left(rows.stream) == 0:  # or else more of its prompt is to come
                    self._draw(entry, rows.stream, plan)
        return plan

    def batch(self, plan: Plan) -> Batch:
        """The plan in arrays whose shapes never change."""
        config = self.config
        idle = [None] * (config.max_requests - len(plan.decodes))
        entries = [*plan.decodes, *idle, *plan.chunks]
        ids = [rows and rows.stream.pages for rows in entries]
        packed = [token for rows in entries if rows for token in rows.tokens]
        tokens = np.zeros(config.step_tokens, np.int32)
        tokens[: len(packed)] = packed
        counts = [len(rows.tokens) if rows else 0 for rows in entries]
        new = self.allocator.new_tokens(ids, counts, config.step_tokens)
        temperatures = np.zeros(config.table_entries, np.float32)
        seeds = np.zeros(config.table_entries, np.int32)
        for entry, stream in plan.draws.items():
            temperatures[entry], seeds[entry] = stream.request.temperature, stream.request.seed
        return Batch(
            tokens,
            new.batch_indices,
            new.positions,
            new.qo_indptr[config.max_requests :],
            *self.allocator.page_table(ids),
            temperatures,
            seeds,
        )

    def collect(self, plan: Plan, drawn: np.ndarray) -> list[tuple[Stream, int]]:
        """Takes in what a step drew. Returns the streams that grew, each with its new token."""
        news = []
        for entry, stream in plan.draws.items():
            stream.in_flight -= 1
            if stream.ended:  # the step was planned before that was known
                continue
            token = int(drawn[entry])
            stream.tokens.append(token)
            news.append((stream, token))
            here = len(stream.generated)
            if here == stream.request.max_new_tokens or token == stream.request.stop:
                stream.ended = True
                if stream in self.waiting:  # it was preempted meanwhile
                    self.waiting.remove(stream)
                self._retire(stream)
        return news

    # Rows

    def _left(self, stream: Stream) -> int:
        """How many of its tokens are not computed yet."""
        return stream.total - self.allocator.length(stream.pages)

    def _schedule(self, stream: Stream, plan: Plan) -> None:
        """Gives a running stream its rows of the step, if there are rows and pages for it."""
        left = self._left(stream)
        if left == 1:
            entries, count = plan.decodes, 1
        elif len(plan.chunks) < self.config.max_prompts:
            entries, count = plan.chunks, min(left, self.config.chunk_tokens - plan.chunk_rows)
        else:
            return
        if not count or not self._append(stream, count):
            return
        end = self.allocator.length(stream.pages)
        here = list(stream.tokens[end - count : end])
        entries.append(Rows(stream, here + [~stream.drawn_at] * (count - len(here))))

    def _draw(self, entry: int, stream: Stream, plan: Plan) -> None:
        plan.draws[entry] = stream
        stream.drawn_at = entry
        stream.in_flight += 1
        if stream.is_complete:
            self._retire(stream)

    def _admit(self, plan: Plan) -> None:
        """Starts waiting streams, in order, while there are rows, table entries and pages."""
        config = self.config
        while self.waiting and len(self.running) < config.max_requests:
            stream = self.waiting[0]
            if plan.chunk_rows == config.chunk_tokens or len(plan.chunks) == config.max_prompts:
                return
            stream.pages, shared = self._share(stream)
            # A page more for each of the others: their next tokens shall not preempt this one.
            needed = config.pages_of(len(stream.tokens)) - config.pages_of(shared)
            if not self._free_pages(needed + len(self.running)):
                self._release(stream)
                return
            self.counters.shared += shared
            self.running.append(self.waiting.popleft())
            self._schedule(stream, plan)

    # Pages

    def _append(self, stream: Stream, count: int) -> bool:
        """Makes room for more tokens of a stream. False: it had to be preempted itself."""
        while True:
            try:
                self.allocator.append(stream.pages, count)
                return True
            except OutOfPagesError as error:
                if self._free_pages(error.needed):
                    continue
            youngest = self.running.pop()
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.counters.preemptions += 1
            if youngest is stream:
                return False

    def _free_pages(self, count: int) -> bool:
        """Whether so many pages are free, if need be after finished streams gave up theirs."""
        while self.allocator.free_pages < count and self.finished:
            self._release(self.finished.pop(0))
        return self.allocator.free_pages >= count

    def _release(self, stream: Stream) -> None:
        self.allocator.free(stream.pages)
        stream.pages = None

    def _retire(self, stream: Stream) -> None:
        """A stream that is done keeps its pages, for others to share, until they are needed."""
        if stream in self.running:
            self.running.remove(stream)
            self.finished.append(stream)

    def _share(self, stream: Stream) -> tuple[int, int]:
        """Pages for a stream, with the longest prefix that another has, and that prefix's length.

        The other's tokens may be part of the step that is being planned: every layer writes all
        rows before it reads any. One token at least is left to compute.
        """
        prompt, best, shared = stream.tokens[:-1], None, 0
        for other in (*self.finished, *self.running):
            there = min(len(other.tokens), self.allocator.length(other.pages))
            common = common_prefix(prompt, other.tokens[:there])
            common -= common % self.config.page_size
            if common > shared:
                best, shared = other, common
        if best is None:
            return self.allocator.alloc(), 0
        if best in self.finished:
            self.finished.remove(best)
            self.finished.append(best)
        return self.allocator.fork(best.pages, shared), shared


def common_prefix(a: bytes | bytearray, b: bytes | bytearray) -> int:
    """How many bytes both begin with."""
    length = min(len(a), len(b))
    different = np.frombuffer(a[:length], np.uint8) != np.frombuffer(b[:length], np.uint8)
    return int(different.argmax()) if different.any() else length
