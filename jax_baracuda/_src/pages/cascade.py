"""shared_prefix_decode: one pass over the pages that all requests begin with, one over their own.

It is a composition of paged_decode and merge_attention_states, and has no kernel of its own.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import convert, validation
from jax_baracuda._src.merge.api import merge_attention_states
from jax_baracuda._src.paged.api import paged_decode


def shared_prefix_decode(
    query: ArrayLike,
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    prefix_indices: ArrayLike,
    prefix_len: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    last_page_len: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``paged_decode`` of requests that begin with the same pages, which are read once for all.

    The history of every request is the first ``prefix_len`` keys of the pages ``prefix_indices``,
    then the keys of its own pages. For the prefix, the queries of all requests are heads of one
    request; the two results are merged by their log-sum-exp. ``paged_decode`` reads the prefix for
    each request anew: with 32 requests, a prefix of 8192 tokens and own parts of a few hundred,
    that is most of the bytes of a step.

    Shapes are those of ``paged_decode``: B requests, Hq query heads on Hkv key/value heads, P pages
    of page_size rows, N entries of the table; and Np entries of the prefix.

    Args:
      query: [B, Hq, D], float16, bfloat16 or float32.
      k_pages: [P, Hkv, page_size, D], or [P, page_size, Hkv, D] with ``kv_layout="NHD"``.
      v_pages: like ``k_pages``.
      prefix_indices: integer [Np], the pages of the prefix in order. Those past ``prefix_len`` are
        not read.
      prefix_len: an integer, which may be traced: tokens in the prefix, clamped to 0..Np *
        page_size. 0 is no prefix. It need not end with a page: the histories go on in the first of
        the requests' own pages. (A ``PageAllocator`` shares whole pages only.)
      page_indices: integer [N], page ids of the requests' own parts, as in ``paged_decode``.
      page_indptr: integer [B + 1]. A request without pages of its own attends to the prefix alone.
      last_page_len: integer [B].
      kv_layout: "HND" or "NHD", the order of the heads and rows of a page.
      scale: factor on the logits, a Python number; None for 1/sqrt(D).
      logits_soft_cap: a positive number c turns each scaled logit x into c * tanh(x / c).
      implementation: None, "cuda" or "reference", as in ``paged_decode``.

    Returns:
      ``(out, lse)``: [B, Hq, D] in the dtype of ``query``, and [B, Hq] in float32, as
      ``paged_decode`` has them for tables that name the prefix in front of every request. A slot
      without a request gets the attention to the prefix, which is to be ignored.

    Raises:
      What ``paged_decode`` raises. Windows, sinks and ALiBi, which depend on the whole history, are
      not among the options.

    Transformations are those of ``paged_decode``. Under ``jit`` the heads may be sharded.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda.paged import PageAllocator, shared_prefix_decode
      >>> pages = PageAllocator(64, 16, max_requests=4)
      >>> prompt = pages.alloc(37)  # two whole pages and 5 tokens
      >>> requests = [pages.fork(prompt) for _ in range(4)]
      >>> taken = [pages.append(request) for request in requests]  # the third page is copied
      >>> copies = pages.take_copies()  # for copy_pages
      >>> shared = pages.shared_pages(requests)
      >>> shared
      2
      >>> store = jnp.ones((64, 8, 16, 128), jnp.bfloat16)
      >>> out, lse = jax.jit(shared_prefix_decode)(
      ...     jnp.ones((4, 32, 128), jnp.bfloat16), store, store,
      ...     pages.pages(prompt), shared * pages.page_size,
      ...     *pages.page_table(requests, skip_pages=shared))
      >>> out.shape
      (4, 32, 128)

    Sources: Z. Ye et al., "Cascade Inference: Memory Bandwidth Efficient Shared Prefix Batch
    Decoding", FlashInfer, 2024; J. Juravsky et al., "Hydragen: High-Throughput LLM Inference with
    Shared Prefixes", 2024, arXiv:2402.05099.
    """
    decode = functools.partial(
        paged_decode,
        k_pages=k_pages,
        v_pages=v_pages,
        kv_layout=kv_layout,
        scale=scale,
        logits_soft_cap=logits_soft_cap,
        implementation=implementation,
    )
    own = decode(
        query,
        page_indices=page_indices,
        page_indptr=page_indptr,
        last_page_len=last_page_len,
    )
    indices = convert.array("prefix_indices", prefix_indices)
    validation.check_rank("prefix_indices", indices, "[Np]")
    validation.check_integers("prefix_indices", indices, indices.shape, "[Np]")
    length = convert.array("prefix_len", prefix_len)
    validation.check_integers("prefix_len", length, (), "a scalar")
    page_size = jnp.shape(k_pages)[1 if kv_layout == "NHD" else 2]
    length = jnp.clip(length, 0, indices.shape[0] * page_size).astype(jnp.int32)
    pages = -(-length // page_size)

    def attend_to_prefix(query: jax.Array) -> tuple[jax.Array, jax.Array]:
        return decode(
            query[None],
            page_indices=indices,
            page_indptr=jnp.stack([jnp.zeros_like(pages), pages]),
            last_page_len=(length - (pages - 1) * page_size)[None],
        )

    # vmap over queries that share a table makes them heads of one request: a key is read once.
    out, lse = jax.vmap(attend_to_prefix)(convert.array("query", query))
    return merge_attention_states(out[:, 0], lse[:, 0], *own)
