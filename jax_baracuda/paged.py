"""Paged key/value stores: who owns which page, and decoding behind a shared prefix.

``PageAllocator`` keeps the books on the host. Its tables go to ``jax_baracuda.paged_append``,
``paged_prefill`` and ``paged_decode``. docs/serving.md builds continuous batching from them.
"""

from jax_baracuda._src.pages.allocator import OutOfPagesError, PageAllocator
from jax_baracuda._src.pages.cascade import shared_prefix_decode
from jax_baracuda._src.pages.copying import copy_pages
from jax_baracuda._src.pages.tables import NewTokens, PageCopies, PageTable

__all__ = [
    "NewTokens",
    "OutOfPagesError",
    "PageAllocator",
    "PageCopies",
    "PageTable",
    "copy_pages",
    "shared_prefix_decode",
]
