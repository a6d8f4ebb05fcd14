"""What a PageAllocator hands to the device: int32 numpy arrays whose shapes never change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(slots=True)
class History:
    """The ``length`` tokens of a request, in the first ``used`` of ``pages``."""

    pages: np.ndarray  # int32, with room to grow
    used: int
    length: int

    def extend(self, pages: np.ndarray) -> None:
        """Appends pages, in amortised constant time a page."""
        end = self.used + len(pages)
        if end > len(self.pages):
            grown = np.empty(max(end, 2 * len(self.pages)), np.int32)
            grown[: self.used] = self.pages[: self.used]
            self.pages = grown
        self.pages[self.used : end] = pages
        self.used = end


class PageTable(NamedTuple):
    """Where the histories of a batch of requests lie: what ``paged_decode`` and others take.

    Attributes:
      page_indices: [max_pages], the pages of request after request; the unused rest is 0.
      page_indptr: [max_requests + 1], where each request's pages begin in ``page_indices``.
      last_page_len: [max_requests], how many tokens the last page of each request holds, 1 to
        page_size; 0 for a slot without tokens.
    """

    page_indices: np.ndarray
    page_indptr: np.ndarray
    last_page_len: np.ndarray


class NewTokens(NamedTuple):
    """Which tokens of which requests a step computes and writes, packed end to end.

    Attributes:
      batch_indices: [T], the slot of each token's request; -1 for padding.
      positions: [T], where in its history each token sits; -1 for padding.
      qo_indptr: [max_requests + 1], where each slot's tokens begin: ``paged_prefill`` takes it.
    """

    batch_indices: np.ndarray
    positions: np.ndarray
    qo_indptr: np.ndarray


class PageCopies(NamedTuple):
    """Copies of whole pages that are due, for ``copy_pages``.

    Attributes:
      src: [N], pages to read, all of them before any is written; -1 for padding.
      dst: [N], pages to write, no two the same; -1 for padding.
    """

    src: np.ndarray
    dst: np.ndarray


def page_table(
    histories: Sequence[History], *, page_size: int, slots: int, size: int, skip_pages: int
) -> PageTable:
    """The table of these histories, which fit, without the first pages of each."""
    parts = [history.pages[skip_pages : history.used] for history in histories]
    counts = np.zeros(slots, np.int32)
    counts[: len(parts)] = [len(part) for part in parts]
    indptr = np.zeros(slots + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    indices = np.zeros(size, np.int32)
    if parts:
        np.concatenate(parts, out=indices[: indptr[-1]])
    in_last_page = lengths(histories, slots) - (skip_pages + counts - 1) * page_size
    return PageTable(indices, indptr, np.where(counts > 0, in_last_page, 0).astype(np.int32))


def lengths(histories: Sequence[History], slots: int) -> np.ndarray:
    """int32 [slots], 0 past the last history."""
    result = np.zeros(slots, np.int32)
    result[: len(histories)] = [history.length for history in histories]
    return result


def new_tokens(
    histories: Sequence[History], counts: Sequence[int], *, slots: int, size: int
) -> NewTokens:
    """The last ``counts[i]`` tokens of each history, which has them, packed."""
    total = sum(counts)
    indptr = np.full(slots + 1, total, np.int32)
    indptr[: len(counts) + 1] = np.cumsum([0, *counts])
    batch_indices, positions = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    owner = np.repeat(np.arange(len(counts)), counts)
    # Rows and positions go up together, and end together: row indptr[b + 1] is position length[b].
    offset = lengths(histories, slots) - indptr[1:]
    batch_indices[:total] = owner
    positions[:total] = np.arange(total) + offset[owner]
    return NewTokens(batch_indices, positions, indptr)


def page_copies(copies: dict[int, int], multiple: int) -> PageCopies:
    """{destination: source} as arrays, padded to a multiple of a length, one of them at least."""
    size = max(1, -(-len(copies) // multiple)) * multiple
    result = PageCopies(np.full(size, -1, np.int32), np.full(size, -1, np.int32))
    result.src[: len(copies)] = list(copies.values())
    result.dst[: len(copies)] = list(copies)
    return result


def common_pages(histories: Sequence[History], page_size: int) -> int:
    """How many pages, full in each, all of the histories begin with; 0 if there are none."""
    if not histories:
        return 0
    whole = min(history.length for history in histories) // page_size
    pages = np.stack([history.pages[:whole] for history in histories])
    different = (pages != pages[0]).any(axis=0)
    return int(different.argmax()) if different.any() else whole
