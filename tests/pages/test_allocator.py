"""PageAllocator: what its operations do, one by one, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from jax_baracuda.paged import OutOfPagesError, PageAllocator


def allocator(num_pages=8, page_size=4, max_requests=3, max_pages=None):
    return PageAllocator(num_pages, page_size, max_requests=max_requests, max_pages=max_pages)


def snapshot(pages):
    """Everything that can be seen of an allocator."""
    return (
        pages.free_pages,
        pages.pending_copies,
        {r: (pages.length(r), pages.pages(r).tolist()) for r in pages.requests},
        [pages.owners(page) for page in range(pages.num_pages)],
    )


def test_pages_are_taken_as_a_history_grows():
    pages = allocator()
    a = pages.alloc(5)
    assert pages.pages(a).tolist() == [0, 1]
    assert pages.append(a).tolist() == []
    assert pages.append(a, 2).tolist() == []
    assert pages.append(a).tolist() == [2]
    assert pages.append(a, 8).tolist() == [3, 4]
    assert pages.append(a, 0).tolist() == []
    assert (pages.length(a), pages.free_pages) == (17, 3)
    empty = pages.alloc()
    assert (pages.length(empty), pages.pages(empty).tolist()) == (0, [])
    assert pages.append(empty).tolist() == [5]


def test_what_is_freed_is_used_again_and_ids_are_not():
    pages = allocator(num_pages=4)
    a, b = pages.alloc(8), pages.alloc(8)
    pages.free(a)
    assert pages.requests == (b,)
    c = pages.alloc(8)
    assert c not in (a, b)
    assert pages.pages(c).tolist() == [0, 1]
    with pytest.raises(ValueError, match=f"request is {a}; .* freed"):
        pages.append(a)


def test_a_fork_shares_whole_pages_and_copies_the_last_on_append():
    pages = allocator()
    a = pages.alloc(6)
    b = pages.fork(a)
    assert pages.free_pages == 6
    assert pages.pages(b).tolist() == [0, 1]
    assert [pages.owners(page) for page in range(3)] == [2, 2, 0]
    assert pages.append(b).tolist() == [2]
    assert pages.pending_copies == 1
    copies = pages.take_copies()
    assert copies.src.tolist() == [1, -1, -1]
    assert copies.dst.tolist() == [2, -1, -1]
    assert pages.pending_copies == 0
    assert [pages.owners(page) for page in range(3)] == [2, 1, 1]
    assert pages.append(a).tolist() == []  # page 1 is its own again
    pages.free(a)
    assert pages.free_pages == 8 - 2


def test_a_full_last_page_is_not_copied():
    pages = allocator()
    a = pages.alloc(8)
    b = pages.fork(a)
    assert pages.append(b).tolist() == [2]
    assert pages.append(a, 5).tolist() == [3, 4]
    assert not pages.pending_copies


@pytest.mark.parametrize(("length", "shared"), [(0, 0), (1, 1), (4, 1), (5, 2), (11, 3), (None, 3)])
def test_a_fork_at_a_prefix(length, shared):
    pages = allocator()
    a = pages.alloc(11)
    b = pages.fork(a, length)
    assert pages.length(b) == (11 if length is None else length)
    assert pages.pages(b).tolist() == pages.pages(a)[:shared].tolist()
    taken = pages.append(b)
    # A new page where the prefix ends with a page, a copy where it does not.
    assert taken.tolist() == [3]
    assert pages.pending_copies == (0 if length in (0, 4) else 1)


def test_the_last_owner_of_a_shared_page_writes_in_place():
    pages = allocator()
    a = pages.alloc(6)
    b = pages.fork(a, 5)
    pages.free(a)
    assert pages.append(b).tolist() == []
    assert not pages.pending_copies


def test_copies_of_copies_that_were_not_made_yet_come_from_where_the_contents_are():
    pages = allocator()
    a = pages.alloc(6)
    pages.append(b := pages.fork(a))  # 1 -> 2
    pages.append(pages.fork(b, 6))  # 2 -> 3, which is 1 -> 3
    copies = pages.take_copies()
    assert copies.src.tolist() == [1, 1, -1]
    assert copies.dst.tolist() == [2, 3, -1]


def test_a_copy_for_a_request_that_is_gone_is_not_made():
    pages = allocator()
    a = pages.alloc(6)
    b = pages.fork(a)
    pages.append(b)
    pages.free(b)
    assert not pages.pending_copies
    assert (pages.take_copies().dst == -1).all()


def test_copies_are_padded_to_a_multiple_of_the_slots():
    pages = allocator(num_pages=16, max_requests=3)
    a = pages.alloc(1)
    forks = [pages.fork(a) for _ in range(4)]
    for fork in forks:
        pages.append(fork)
    copies = pages.take_copies()
    assert copies.src.tolist() == [0] * 4 + [-1] * 2
    assert copies.dst.tolist() == [1, 2, 3, 4, -1, -1]


def test_exhaustion_says_what_is_missing_and_changes_nothing():
    pages = allocator(num_pages=4)
    a = pages.alloc(6)
    b = pages.fork(a)
    before = snapshot(pages)
    with pytest.raises(OutOfPagesError, match="3 pages are needed and 2 of 4 are free") as error:
        pages.alloc(9)
    assert (error.value.needed, error.value.available) == (3, 2)
    assert isinstance(error.value, RuntimeError)
    with pytest.raises(OutOfPagesError) as error:
        pages.append(b, 8)  # a copy and two pages
    assert (error.value.needed, error.value.available) == (3, 2)
    assert snapshot(pages) == before
    pages.append(b, 4)
    assert pages.free_pages == 0
    before = snapshot(pages)
    with pytest.raises(OutOfPagesError):
        pages.append(a, 3)
    assert snapshot(pages) == before
    pages.append(a, 2)


def test_tables_have_fixed_shapes_and_padding():
    pages = allocator(num_pages=8, max_requests=4, max_pages=6)
    a, b, c = pages.alloc(6), pages.alloc(0), pages.alloc(8)
    table = pages.page_table([c, None, b, a])
    assert [array.dtype for array in table] == [np.int32] * 3
    assert table.page_indices.tolist() == [2, 3, 0, 1, 0, 0]
    assert table.page_indptr.tolist() == [0, 2, 2, 2, 4]
    assert table.last_page_len.tolist() == [4, 0, 0, 2]
    assert pages.lengths([c, None, b, a]).tolist() == [8, 0, 0, 6]
    table = pages.page_table([a])
    assert table.page_indices.tolist() == [0, 1, 0, 0, 0, 0]
    assert table.page_indptr.tolist() == [0, 2, 2, 2, 2]
    assert table.last_page_len.tolist() == [2, 0, 0, 0]
    empty = pages.page_table([])
    assert [array.any() for array in empty] == [False] * 3


def test_a_table_without_the_shared_pages():
    pages = allocator(num_pages=8, max_requests=3)
    prefix = pages.alloc(10)
    a, b = pages.fork(prefix), pages.fork(prefix)
    pages.append(a, 3)
    assert pages.shared_pages([a, b]) == 2
    assert pages.shared_pages([b, None, prefix]) == 2
    assert pages.shared_pages([]) == pages.shared_pages([None]) == 0
    assert pages.shared_pages([a, pages.alloc(1)]) == 0
    assert pages.shared_pages([a, pages.fork(prefix, 8)]) == 2
    assert pages.shared_pages([a, pages.fork(prefix, 7)]) == 1
    pages.take_copies()
    table = pages.page_table([a, None, b], skip_pages=2)
    assert table.page_indices.tolist() == [*pages.pages(a)[2:], 2, 0, 0, 0, 0, 0]
    assert table.page_indptr.tolist() == [0, 2, 2, 3]
    assert table.last_page_len.tolist() == [1, 0, 2]
    nothing = pages.page_table([pages.fork(prefix, 8)], skip_pages=2)
    assert not nothing.page_indptr.any()
    assert not nothing.last_page_len.any()
    with pytest.raises(ValueError, match=r"skip_pages is 3; request .* has 2 pages"):
        pages.page_table([pages.fork(prefix, 8)], skip_pages=3)


def test_new_tokens_are_the_last_of_each_history():
    pages = allocator(num_pages=16, max_requests=4)
    a, b, c = pages.alloc(5), pages.alloc(9), pages.alloc(3)
    tokens = pages.new_tokens([b, None, a, c], [1, 0, 5, 0], 8)
    assert tokens.batch_indices.tolist() == [0, 2, 2, 2, 2, 2, -1, -1]
    assert tokens.positions.tolist() == [8, 0, 1, 2, 3, 4, -1, -1]
    assert tokens.qo_indptr.tolist() == [0, 1, 1, 6, 6]
    assert [array.dtype for array in tokens] == [np.int32] * 3
    tokens = pages.new_tokens([], [], 2)
    assert tokens.batch_indices.tolist() == [-1, -1]
    assert tokens.qo_indptr.tolist() == [0] * 5


def test_due_copies_come_before_tables():
    pages = allocator()
    a = pages.alloc(3)
    b = pages.fork(a)
    pages.append(b)
    with pytest.raises(RuntimeError, match=r"1 page copies are due.*take_copies"):
        pages.page_table([a, b])
    pages.take_copies()
    pages.page_table([a, b])


def test_more_pages_than_a_table_holds():
    pages = allocator(num_pages=4, max_pages=3)
    a = pages.alloc(8)
    b = pages.fork(a)
    with pytest.raises(OutOfPagesError, match="4 pages together; max_pages is 3") as error:
        pages.page_table([a, b])
    assert (error.value.needed, error.value.available) == (4, 3)
    assert pages.page_table([b]).page_indptr.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, r: allocator(num_pages=0), ["num_pages", "0", ">= 1"]),
        (lambda p, r: allocator(page_size=2.0), ["page_size", "2.0", "int"]),
        (lambda p, r: allocator(max_requests=True), ["max_requests", "True"]),
        (lambda p, r: allocator(max_pages=-1), ["max_pages", "-1"]),
        (lambda p, r: allocator(num_pages=2**20, page_size=2**11), ["num_pages", "2**31"]),
        (lambda p, r: p.alloc(-1), ["num_tokens", "-1", ">= 0"]),
        (lambda p, r: p.append(r, 1.5), ["num_tokens", "1.5"]),
        (lambda p, r: p.append(99), ["request is 99"]),
        (lambda p, r: p.free(99), ["request is 99"]),
        (lambda p, r: p.fork(r, 6), ["length is 6", "has 5 tokens"]),
        (lambda p, r: p.fork(r, -1), ["length", "-1"]),
        (lambda p, r: p.owners(8), ["page is 8", "0 to 7"]),
        (lambda p, r: p.page_table([r] * 4), ["requests", "4 slots", "3"]),
        (lambda p, r: p.page_table([98]), ["request is 98"]),
        (lambda p, r: p.new_tokens([r], [1, 1], 4), ["counts", "2 entries", "requests has 1"]),
        (lambda p, r: p.new_tokens([r], [6], 8), ["counts has 6", "has 5 tokens"]),
        (lambda p, r: p.new_tokens([None], [1], 8), ["counts has 1", "None", "has 0 tokens"]),
        (lambda p, r: p.new_tokens([r], [5], 4), ["5 tokens together", "size is 4"]),
        (lambda p, r: p.new_tokens([r], [-1], 4), ["counts", "-1"]),
    ],
)
def test_errors_name_what_was_given_and_change_nothing(call, words):
    pages = allocator()
    request = pages.alloc(5)
    before = snapshot(pages)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        call(pages, request)
    for word in words:
        assert word in str(error.value)
    assert snapshot(pages) == before


def test_the_repr_tells_how_full_it_is():
    pages = allocator()
    pages.alloc(5)
    assert repr(pages) == "PageAllocator(6 of 8 pages of 4 tokens free, 1 requests)"


def test_a_token_more_costs_no_copy_of_the_page_list():
    pages = PageAllocator(4096, 1, max_requests=1)
    request = pages.alloc(1)
    lists = set()
    for _ in range(4095):
        pages.append(request)
        lists.add(id(pages._requests[request].pages))
    assert len(lists) <= 13
    assert pages.pages(request).tolist() == list(range(4096))
