"""PageAllocator: which request owns which page of a paged key/value store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_baracuda._src import validation
from jax_baracuda._src.pages import tables
from jax_baracuda._src.pages.tables import History, NewTokens, PageCopies, PageTable


class OutOfPagesError(RuntimeError):
    """There are fewer pages than were asked for. What was asked for did not happen, not in part.

    Attributes:
      needed: how many pages were asked for.
      available: how many there are.
    """

    def __init__(self, message: str, *, needed: int, available: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


_NO_PAGES = np.empty(0, np.int32)
_EMPTY = History(_NO_PAGES, 0, 0)


class PageAllocator:
    """Keeps the books of a paged key/value store, on the host, in numpy.

    A store is ``num_pages`` pages of ``page_size`` tokens. A request's history is a list of pages,
    all of them full but the last. ``fork`` lets requests share pages, which are counted; a shared
    page that is not full is copied when one of its owners appends to it (copy-on-write). The
    allocator touches no device memory: it says which pages to copy (``take_copies``), and hands out
    the tables that ``paged_decode``, ``paged_prefill`` and ``paged_append`` take, at shapes that
    never change, so that one compiled step serves any set of requests.

    A step is: ``alloc``, ``fork``, ``append`` and ``free`` as requests come, grow and go;
    ``copy_pages`` if there are ``pending_copies``; then the tables, and the call that writes the
    tokens. Copies take what the steps before have written. So of tokens that are appended and not
    yet written, ``fork`` may share whole pages, which are never copied, and no part of one.

    Every operation takes time in proportion to the pages that it names, ``append`` to those that it
    takes. One that fails changes nothing. It is not safe to call from several threads at once.

    Args:
      num_pages: P, the pages of the store. num_pages * page_size must be below 2**31.
      page_size: tokens a page.
      max_requests: B, how many slots the tables have; more requests than that may hold pages.
      max_pages: N, how many pages the requests of one table may have together, a page that k of
        them share counted k times. None: ``num_pages``, enough where nothing is shared.

    Raises:
      ValueError: an argument is not an int >= 1, or the store is too large.

    Example::

      >>> from jax_baracuda.paged import PageAllocator
      >>> allocator = PageAllocator(num_pages=64, page_size=16, max_requests=2)
      >>> prompt = allocator.alloc(40)  # pages 0, 1, 2; the last holds 8 tokens
      >>> other = allocator.fork(prompt)  # shares all three
      >>> allocator.append(other).tolist()  # one token more: page 2 is copied to page 3
      [3]
      >>> copies = allocator.take_copies()  # for copy_pages
      >>> copies.src.tolist(), copies.dst.tolist()
      ([2, -1], [3, -1])
      >>> table = allocator.page_table([prompt, other])
      >>> table.page_indices[:6].tolist(), table.page_indptr.tolist(), table.last_page_len.tolist()
      ([0, 1, 2, 0, 1, 3], [0, 3, 6], [8, 9])

    Sources: paged attention, W. Kwon et al., "Efficient Memory Management for Large Language Model
    Serving with PagedAttention", 2023, arXiv:2309.06180; the tables are FlashInfer's, Z. Ye et al.,
    2025, arXiv:2501.01005.
    """

    def __init__(
        self, num_pages: int, page_size: int, *, max_requests: int, max_pages: int | None = None
    ) -> None:
        max_pages = num_pages if max_pages is None else max_pages
        self.num_pages = _positive("num_pages", num_pages)
        self.page_size = _positive("page_size", page_size)
        self.max_requests = _positive("max_requests", max_requests)
        self.max_pages = _positive("max_pages", max_pages)
        if self.num_pages * self.page_size > validation.MAX_INT32:
            raise ValueError(
                f"num_pages is {num_pages} and page_size {page_size}; supported are < 2**31 tokens."
            )
        self._requests: dict[int, History] = {}
        self._next = 0  # ids are not used again, so that a stale one is an error
        self._owners = np.zeros(self.num_pages, np.int32)
        # A stack: its first `_free_count` entries are free, and the last of those goes first.
        self._free = np.arange(self.num_pages, dtype=np.int32)[::-1].copy()
        self._free_count = self.num_pages
        self._copies: dict[int, int] = {}  # destination: source

    # Requests

    def alloc(self, num_tokens: int = 0) -> int:
        """A new request with room for ``num_tokens``, 0 or more. Returns its id.

        Raises:
          OutOfPagesError: there are not enough free pages.
        """
        count = validation.check_count("num_tokens", num_tokens)
        pages = self._take(self._pages_of(count))
        return self._add(History(pages, len(pages), count))

    def append(self, request: int, num_tokens: int = 1) -> np.ndarray:
        """Makes room for ``num_tokens`` more tokens of the request.

        Returns:
          The pages taken for it, int32, often none. If the last page has room and is shared, the
          first of them is a copy of it, for the request alone, and a copy is due (``take_copies``).

        Raises:
          OutOfPagesError: there are not enough free pages.
        """
        record = self._record(request)
        count = validation.check_count("num_tokens", num_tokens)
        copies = int(count > 0 and self._last_page_is_shared(record))
        grow_by = self._pages_of(record.length + count) - record.used
        taken = self._take(copies + grow_by)
        if copies:
            self._replace_last_page(record, int(taken[0]))
        if grow_by:
            record.extend(taken[copies:])
        record.length += count
        return taken

    def fork(self, request: int, length: int | None = None) -> int:
        """A new request that shares the first ``length`` tokens of another. Returns its id.

        No page is taken and nothing is copied before one of the two appends to a page that both
        have. None: all tokens.

        Raises:
          ValueError: ``length`` is not from 0 to the length of the request.
        """
        record = self._record(request)
        count = record.length if length is None else validation.check_count("length", length)
        if count > record.length:
            raise ValueError(f"length is {count}; request {request} has {record.length} tokens.")
        pages = record.pages[: self._pages_of(count)].copy()
        self._owners[pages] += 1
        return self._add(History(pages, len(pages), count))

    def free(self, request: int) -> None:
        """Ends a request: its id is void, and the pages that it alone had are free."""
        record = self._record(request)
        del self._requests[request]
        pages = record.pages[: record.used]
        self._owners[pages] -= 1
        gone = pages[self._owners[pages] == 0]
        self._free[self._free_count : self._free_count + len(gone)] = gone[::-1]
        self._free_count += len(gone)
        if self._copies:
            for page in gone.tolist():
                self._copies.pop(page, None)

    # What there is

    @property
    def requests(self) -> tuple[int, ...]:
        """The requests that are alive, oldest first."""
        return tuple(self._requests)

    @property
    def free_pages(self) -> int:
        """How many pages no request has."""
        return self._free_count

    @property
    def pending_copies(self) -> int:
        """How many pages are to be copied before the next step."""
        return len(self._copies)

    def length(self, request: int) -> int:
        """How many tokens a request has."""
        return self._record(request).length

    def pages(self, request: int) -> np.ndarray:
        """The pages of a request in the order of its tokens, int32, a copy."""
        record = self._record(request)
        return record.pages[: record.used].copy()

    def owners(self, page: int) -> int:
        """How many requests have a page."""
        if not 0 <= page < self.num_pages:
            raise ValueError(f"page is {page}; there are pages 0 to {self.num_pages - 1}.")
        return int(self._owners[page])

    def shared_pages(self, requests: Sequence[int | None]) -> int:
        """How many pages all the requests begin with: whole ones, full in all of them.

        With ``n`` of them, ``pages(request)[:n]`` of any of the requests, ``n * page_size`` and
        ``page_table(requests, skip_pages=n)`` are what ``shared_prefix_decode`` takes.
        """
        present = [request for request in requests if request is not None]
        return tables.common_pages(self._batch(present), self.page_size)

    # What the device needs

    def take_copies(self) -> PageCopies:
        """The copies that are due, for ``copy_pages``, which the caller makes before the next step.

        Returns:
          Sources and destinations, padded with -1 to ``max_requests``, or to a multiple of that if
          there are more. The next call has only what came up in between.
        """
        copies = tables.page_copies(self._copies, self.max_requests)
        self._copies.clear()
        return copies

    def page_table(self, requests: Sequence[int | None], *, skip_pages: int = 0) -> PageTable:
        """The tables of a batch.

        Args:
          requests: which request is in which slot, at most ``max_requests``; None for an empty
            slot, as are those past the end.
          skip_pages: leave out the first so many pages of every request, as if their tokens were
            not there (``shared_prefix_decode``).

        Raises:
          OutOfPagesError: together the requests have more than ``max_pages`` pages.
          RuntimeError: copies are due, without which the tables would name pages with old contents.
          ValueError: a request has fewer pages than ``skip_pages``.
        """
        records = self._batch(requests)
        skip = validation.check_count("skip_pages", skip_pages)
        if self._copies:
            raise RuntimeError(f"{len(self._copies)} page copies are due: call take_copies first.")
        total = 0
        for request, record in zip(requests, records, strict=True):
            if request is not None and record.used < skip:
                raise ValueError(
                    f"skip_pages is {skip}; request {request} has {record.used} pages."
                )
            total += max(0, record.used - skip)
        if total > self.max_pages:
            raise OutOfPagesError(
                f"the requests of the table have {total} pages together; max_pages is "
                f"{self.max_pages}.",
                needed=total,
                available=self.max_pages,
            )
        return tables.page_table(
            records,
            page_size=self.page_size,
            slots=self.max_requests,
            size=self.max_pages,
            skip_pages=skip,
        )

    def lengths(self, requests: Sequence[int | None]) -> np.ndarray:
        """How many tokens the request in each slot has: int32 [max_requests], 0 if it is empty."""
        return tables.lengths(self._batch(requests), self.max_requests)

    def new_tokens(
        self, requests: Sequence[int | None], counts: Sequence[int], size: int
    ) -> NewTokens:
        """The last ``counts[i]`` tokens of the request in slot i, for every slot, packed.

        They are those for which room was just made: ``append`` comes first, then this, and
        ``paged_append`` writes them.

        Args:
          requests: as in ``page_table``.
          counts: how many tokens of each, 0 for an empty slot.
          size: T, how many tokens the step takes.

        Raises:
          ValueError: the counts do not fit the requests, or exceed ``size`` together.
        """
        records = self._batch(requests)
        size = validation.check_count("size", size)
        given = [validation.check_count("counts", count) for count in counts]
        if len(given) != len(records):
            raise ValueError(f"counts has {len(given)} entries and requests has {len(records)}.")
        for request, record, count in zip(requests, records, given, strict=True):
            if count > record.length:
                raise ValueError(
                    f"counts has {count} for request {request}, which has {record.length} tokens."
                )
        if sum(given) > size:
            raise ValueError(f"counts has {sum(given)} tokens together; size is {size}.")
        return tables.new_tokens(records, given, slots=self.max_requests, size=size)

    def __repr__(self) -> str:
        return (
            f"PageAllocator({self.free_pages} of {self.num_pages} pages of {self.page_size} tokens "
            f"free, {len(self._requests)} requests)"
        )

    # Bookkeeping

    def _add(self, record: History) -> int:
        request, self._next = self._next, self._next + 1
        self._requests[request] = record
        return request

    def _record(self, request: int) -> History:
        record = self._requests.get(request)
        if record is None:
            raise ValueError(f"request is {request!r}; it was never allocated or is freed.")
        return record

    def _batch(self, requests: Sequence[int | None]) -> list[History]:
        if len(requests) > self.max_requests:
            raise ValueError(f"requests has {len(requests)} slots; there are {self.max_requests}.")
        return [_EMPTY if request is None else self._record(request) for request in requests]

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _take(self, count: int) -> np.ndarray:
        """``count`` free pages, each with one owner from now on."""
        if not count:
            return _NO_PAGES
        if count > self._free_count:
            raise OutOfPagesError(
                f"{count} pages are needed and {self._free_count} of {self.num_pages} are free; "
                "free a request first.",
                needed=count,
                available=self._free_count,
            )
        rest = self._free_count - count
        pages = self._free[rest : self._free_count][::-1].copy()
        self._owners[pages] = 1
        self._free_count = rest
        return pages

    def _last_page_is_shared(self, record: History) -> bool:
        """Whether tokens that are appended now would go to a page of other requests too."""
        has_room = record.length % self.page_size != 0
        return has_room and bool(self._owners[record.pages[record.used - 1]] > 1)

    def _replace_last_page(self, record: History, copy: int) -> None:
        shared = int(record.pages[record.used - 1])
        self._owners[shared] -= 1
        record.pages[record.used - 1] = copy
        # A page that is itself a copy, and still to be made, has nothing to copy from yet.
        self._copies[copy] = self._copies.get(shared, shared)


def _positive(name: str, value: int) -> int:
    count = validation.index(value)
    if count is None or not 1 <= count <= validation.MAX_INT32:
        raise ValueError(f"{name} is {value!r}; it must be an int >= 1.")
    return count
