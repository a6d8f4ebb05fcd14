"""PageAllocator against a model of a server: any order of operations, contents and all.

The model is a dictionary from a request to its list of tokens, each token unlike any other. The
"device" is a numpy array of tokens, to which copies and writes are done from what the allocator
says alone, in steps that are as far apart as hypothesis likes.
"""

from __future__ import annotations

import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jax_baracuda.paged import OutOfPagesError, PageAllocator

NOTHING = -1

started = precondition(lambda self: hasattr(self, "pages"))


class Server(RuleBasedStateMachine):
    """A server without a model: it allocates, grows, forks, frees and steps."""

    @initialize(
        num_pages=st.integers(1, 30),
        page_size=st.integers(1, 4),
        max_requests=st.integers(1, 5),
        max_pages=st.none() | st.integers(1, 40),
    )
    def start(self, num_pages, page_size, max_requests, max_pages):
        self.pages = PageAllocator(
            num_pages, page_size, max_requests=max_requests, max_pages=max_pages
        )
        self.store = np.full((num_pages, page_size), NOTHING)
        self.tokens: dict[int, list[int]] = {}
        self.written: dict[int, int] = {}  # how many of the tokens the store has
        self.token = itertools.count()

    # The operations

    @rule(count=st.integers(0, 10))
    def alloc(self, count):
        needed = math.ceil(count / self.pages.page_size)
        if needed > self.pages.free_pages:
            self.is_refused(lambda: self.pages.alloc(count), needed)
            return
        request = self.pages.alloc(count)
        assert request not in self.tokens
        self.tokens[request] = [next(self.token) for _ in range(count)]
        self.written[request] = 0

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), count=st.integers(0, 6))
    def append(self, data, count):
        self.append_to(self.any_request(data), count)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), drop=st.integers(0, 3))
    def fork(self, data, drop):
        self.fork_of(self.any_request(data), drop)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), drop=st.integers(0, 3), counts=st.lists(st.integers(0, 3), max_size=4))
    def branch(self, data, drop, counts):
        """Forks of forks that grow at once, as in a search."""
        request = self.any_request(data)
        for count in counts:
            request = self.fork_of(request, drop)
            self.append_to(request, count)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def free(self, data):
        request = self.any_request(data)
        self.pages.free(request)
        del self.tokens[request], self.written[request]
        with pytest.raises(ValueError, match="request is"):
            self.pages.free(request)

    @rule(data=st.data())
    def step(self, data):
        """Copies what is due, then writes what is new, in batches of the slots that there are."""
        copies = self.pages.take_copies()
        assert self.pages.pending_copies == 0
        assert copies.src.shape == copies.dst.shape
        assert copies.src.shape[0] % self.pages.max_requests == 0
        real = copies.dst != NOTHING
        assert len(set(copies.dst[real])) == real.sum()
        assert ((copies.src == NOTHING) == ~real).all()
        self.store[copies.dst[real]] = self.store[copies.src[real]]
        waiting = data.draw(st.permutations(list(self.tokens)))
        for first in range(0, len(waiting), self.pages.max_requests):
            batch = waiting[first : first + self.pages.max_requests]
            self.write(batch, with_hole=data.draw(st.booleans()))

    def write(self, batch, *, with_hole):
        """What paged_append does with the tables of a batch."""
        pages, slots = self.pages, list(batch)
        if with_hole and len(slots) < pages.max_requests:
            slots.insert(len(slots) // 2, None)
        counts = [0 if r is None else len(self.tokens[r]) - self.written[r] for r in slots]
        size = sum(counts) + 3
        used = sum(len(pages.pages(r)) for r in batch)
        if used > pages.max_pages:
            with pytest.raises(OutOfPagesError, match="max_pages"):
                pages.page_table(slots)
            if len(batch) > 1:  # fewer at a time, then
                self.write(batch[:1], with_hole=False)
                self.write(batch[1:], with_hole=False)
            return
        table = pages.page_table(slots)
        self.table_is_right(table, slots)
        new = pages.new_tokens(slots, counts, size)
        assert new.batch_indices.shape == new.positions.shape == (size,)
        assert np.diff(new.qo_indptr).tolist() == counts + [0] * (pages.max_requests - len(slots))
        for row, (slot, position) in enumerate(zip(new.batch_indices, new.positions, strict=True)):
            if slot == NOTHING:
                assert position == NOTHING
                assert row >= sum(counts)
                continue
            assert new.qo_indptr[slot] <= row < new.qo_indptr[slot + 1]
            page = table.page_indices[table.page_indptr[slot] + position // pages.page_size]
            self.store[page, position % pages.page_size] = self.tokens[slots[slot]][position]
        for request in batch:
            self.written[request] = len(self.tokens[request])
            # As paged_decode would read it: what is written for one has changed no other.
        for slot, request in enumerate(slots):
            if request is not None:
                rows = self.store[table.page_indices[slice(*table.page_indptr[slot : slot + 2])]]
                assert rows.ravel()[: len(self.tokens[request])].tolist() == self.tokens[request]

    def table_is_right(self, table, slots):
        pages = self.pages
        assert table.page_indices.shape == (pages.max_pages,)
        assert table.page_indptr.shape == (pages.max_requests + 1,)
        assert table.last_page_len.shape == (pages.max_requests,)
        assert {array.dtype for array in table} == {np.dtype(np.int32)}
        assert ((table.page_indices >= 0) & (table.page_indices < pages.num_pages)).all()
        assert table.page_indptr[0] == 0
        padded = slots + [None] * (pages.max_requests - len(slots))
        lengths = pages.lengths(slots)
        for slot, request in enumerate(padded):
            start, end = table.page_indptr[slot : slot + 2]
            count = end - start
            length = 0 if count == 0 else (count - 1) * pages.page_size + table.last_page_len[slot]
            expected = 0 if request is None else len(self.tokens[request])
            assert length == lengths[slot] == expected
            assert count == math.ceil(expected / pages.page_size)
            if count == 0:
                assert table.last_page_len[slot] == 0
            else:
                assert 1 <= table.last_page_len[slot] <= pages.page_size
                assert table.page_indices[start:end].tolist() == pages.pages(request).tolist()
        # Without the shared pages: the same histories from there on.
        shared = pages.shared_pages(slots)
        rest = pages.page_table(slots, skip_pages=shared)
        for slot, request in enumerate(slots):
            if request is not None:
                start, end = rest.page_indptr[slot : slot + 2]
                assert (
                    rest.page_indices[start:end].tolist() == pages.pages(request)[shared:].tolist()
                )
                whole = table.last_page_len[slot] if end > start else 0
                assert rest.last_page_len[slot] == whole
                assert shared * pages.page_size <= pages.length(request)

    def any_request(self, data):
        return data.draw(st.sampled_from(list(self.tokens)))

    def append_to(self, request, count):
        size, length = self.pages.page_size, len(self.tokens[request])
        before, free = self.pages.pages(request), self.pages.free_pages
        partly_filled = length % size != 0
        copies = bool(count and partly_filled and self.owners_of(before[-1]) > 1)
        needed = math.ceil((length + count) / size) - len(before) + copies
        if needed > free:
            self.is_refused(lambda: self.pages.append(request, count), needed)
            return
        taken = self.pages.append(request, count).tolist()
        assert len(taken) == needed == free - self.pages.free_pages
        kept = before[:-1] if copies else before
        assert self.pages.pages(request).tolist() == [*kept, *taken]
        self.tokens[request] += [next(self.token) for _ in range(count)]

    def fork_of(self, request, drop):
        free, copies = self.pages.free_pages, self.pages.pending_copies
        length = max(0, self.written[request] - drop)  # only what the store has may be shared
        whole = length == len(self.tokens[request])
        child = self.pages.fork(request, None if whole else length)
        assert (self.pages.free_pages, self.pages.pending_copies) == (free, copies)
        self.tokens[child] = self.tokens[request][:length]
        self.written[child] = length
        return child

    # What holds always

    def owners_of(self, page):
        return sum(page in self.pages.pages(request) for request in self.tokens)

    def is_refused(self, call, needed):
        """OutOfPagesError, and nothing is changed."""
        before = self.seen()
        with pytest.raises(OutOfPagesError) as error:
            call()
        assert (error.value.needed, error.value.available) == (needed, self.pages.free_pages)
        assert self.seen() == before

    def seen(self):
        pages = self.pages
        return (
            pages.requests,
            [(pages.length(r), pages.pages(r).tolist()) for r in pages.requests],
            [pages.owners(page) for page in range(pages.num_pages)],
            pages.free_pages,
            pages.pending_copies,
        )

    @started
    @invariant()
    def no_page_is_leaked_or_counted_wrong(self):
        pages = self.pages
        assert pages.requests == tuple(self.tokens)
        owned = [page for request in self.tokens for page in pages.pages(request)]
        counts = np.bincount(owned, minlength=pages.num_pages)
        assert counts.tolist() == [pages.owners(page) for page in range(pages.num_pages)]
        assert pages.free_pages == (counts == 0).sum()
        free = pages._free[: pages.free_pages]
        assert sorted(free) == np.flatnonzero(counts == 0).tolist()
        for request, tokens in self.tokens.items():
            own = pages.pages(request)
            assert len(set(own)) == len(own) == math.ceil(len(tokens) / pages.page_size)
            assert pages.length(request) == len(tokens)
        assert all(pages.owners(page) for page in pages._copies)

    @started
    @invariant()
    def what_is_written_stays(self):
        """Through copies that are due and pages that are shared, each request's tokens are its."""
        for request, tokens in self.tokens.items():
            for position in range(self.written[request]):
                page = self.pages.pages(request)[position // self.pages.page_size]
                source = self.pages._copies.get(int(page), page)
                assert self.store[source, position % self.pages.page_size] == tokens[position]

    @started
    @invariant()
    def nothing_that_is_shared_will_be_written(self):
        """Rows that wait to be written lie in pages of one owner, and in no two requests."""
        size = self.pages.page_size
        for request, tokens in self.tokens.items():
            for position in range(self.written[request], len(tokens)):
                page = self.pages.pages(request)[position // size]
                others = [r for r in self.tokens if r != request and page in self.pages.pages(r)]
                for other in others:
                    place = self.pages.pages(other).tolist().index(page)
                    seen = min(size, len(self.tokens[other]) - place * size)
                    assert seen <= position % size


Server.TestCase.settings = hypothesis.settings(
    max_examples=120, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
TestServer = Server.TestCase
