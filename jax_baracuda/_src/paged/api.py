"""paged_decode and paged_prefill, the public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert, validation
from jax_baracuda._src.decode.shapes import check_options as check_decode_options
from jax_baracuda._src.paged import partition, primitive, shapes


def paged_decode(
    query: ArrayLike,
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    last_page_len: ArrayLike,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Attention of one query token a request over keys and values that lie in pages.

    The pages of request b are ``page_indices[page_indptr[b] : page_indptr[b + 1]]``, all full but
    the last one, which holds ``last_page_len[b]`` keys; so the request has

    .. math:: n = (pages - 1) \cdot page\_size + last\_page\_len

    keys, or none without pages. Over these it is ``flash_decode``: the query is the last row of its
    history, at position n - 1. The table is read on the device, where the work is balanced over
    requests of any lengths: one compiled (and captured) step serves every table of its shape.

    Shapes: B requests, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv), P pages of
    page_size rows (any; from 16 on at full speed), D head dimension (1 to 256; multiples of 8 run
    at full speed), N entries of the table. B, P and N may be 0. Two requests may name the same
    page. For layer l of stores [L, P, ...], reshape them to [L * P, ...], which moves nothing, and
    give ``page_indices + l * P``: then a scan over layers copies no store.

    Args:
      query: [B, Hq, D], float16, bfloat16 or float32.
      k_pages: [P, Hkv, page_size, D], or [P, page_size, Hkv, D] with ``kv_layout="NHD"``; the dtype
        of ``query``.
      v_pages: like ``k_pages``.
      page_indices: integer [N], page ids. Entries that no request names are not read. An id outside
        0..P-1 stands for some page of the store.
      page_indptr: integer [B + 1], from which entry to which a request's pages are named. Values
        are clamped to 0..N; where they decrease, the request has no pages, and costs nothing.
      last_page_len: integer [B], clamped to 0..page_size. Rows past it have no effect, even if they
        hold NaN; nor have pages that no request names.
      kv_layout: "HND" or "NHD", the order of the heads and rows of a page.
      scale: factor on the logits, a Python number; None for 1/sqrt(D).
      local_window_size: (left, right) or an int for both, in keys, as in ``flash_decode``.
      sink_tokens: the first so many keys stay visible outside the window too.
      sinks: [Hq] floats, an extra logit a head in the softmax denominator, with no value.
      alibi_slopes: [Hq] or [B, Hq] floats; adds -slope * (n - 1 - j) to the logit of key j, after
        the soft cap.
      logits_soft_cap: a positive number c turns each scaled logit x into c * tanh(x / c).
      num_splits: how many parts each request's keys are cut into, 1 to 1024. None leaves it to the
        scheduler. A number makes the result of a request independent, bit for bit, of the other
        requests in the batch. It has no effect on the reference.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy.

    Returns:
      ``(out, lse)``: out [B, Hq, D] in the dtype of ``query``; lse [B, Hq] in float32, the natural
      log of the softmax denominator, ``sinks`` included, with which ``merge_attention_states``
      joins parts of a history. A request without keys gives 0 and -inf.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for a dtype, head dimension or size that no kernel takes;
        when differentiated (``implementation="reference"`` has a derivative); when compiled for
        another platform with ``implementation="cuda"``; on a GPU, in ``shard_map`` over a part of
        the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel.

    Transformations: ``vmap`` works for every mix of arguments, and copies no store that is not
    mapped. Under ``jit`` the heads may be sharded, and are not gathered; ``shard_map`` serves any
    other split, with a store and a table for every device. ``jax.export`` for CUDA needs no GPU and
    wants ``disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(
    "jax_baracuda_paged_decode")]``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from jax_baracuda import paged_decode
      >>> query = jnp.ones((2, 32, 128), jnp.bfloat16)
      >>> store = jnp.ones((64, 8, 16, 128), jnp.bfloat16)
      >>> out, lse = jax.jit(paged_decode)(
      ...     query, store, store,
      ...     jnp.array([7, 2, 9, 0, 0]),  # request 0 has pages 7 and 2, request 1 page 9
      ...     jnp.array([0, 2, 3]),
      ...     jnp.array([5, 16]))          # 16 + 5 keys, and 16
      >>> out.shape, lse.dtype
      ((2, 32, 128), dtype('float32'))

    Sources: paged caches, W. Kwon et al., "Efficient Memory Management for Large Language Model
    Serving with PagedAttention", 2023, arXiv:2309.06180; the page table's format, Z. Ye et al.,
    "FlashInfer", 2025, arXiv:2501.01005; see also ``flash_decode``.
    """
    given = _arrays(
        query=query,
        k_pages=k_pages,
        v_pages=v_pages,
        page_indices=page_indices,
        page_indptr=page_indptr,
        last_page_len=last_page_len,
    )
    given |= _optional(sinks=sinks, alibi_slopes=alibi_slopes)
    shape = shapes.check_operands(**given, kv_layout=kv_layout)
    options = check_decode_options(
        shape.head_dim,
        kv_layout=kv_layout,
        scale=scale,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        num_splits=num_splits,
    )
    return _call("paged_decode", given, options, implementation)


def paged_prefill(
    query: ArrayLike,
    qo_indptr: ArrayLike,
    k_pages: ArrayLike,
    v_pages: ArrayLike,
    page_indices: ArrayLike,
    page_indptr: ArrayLike,
    last_page_len: ArrayLike,
    *,
    is_causal: bool = True,
    max_seqlen_q: int,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int | None] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the last rows of each request's history, over keys that lie in pages.

    Rows ``qo_indptr[b]`` to ``qo_indptr[b + 1]`` of the query are the last ones of request b, which
    has n keys in the pages of its own, as in ``paged_decode``. Row i of m sits at position
    p = i + n - m: with ``is_causal`` it sees keys j <= p, and windows and ALiBi count from there.
    So a prompt may come in chunks, each attending to all before it, and one call takes requests
    that are still reading their prompt beside requests that decode a row each. Append the keys of
    the rows first (``paged_append``). What the table and the bounds say is read on the device.

    Shapes: T query rows, B requests; Hq, Hkv, D, P, page_size and N as in ``paged_decode``. T, B, P
    and N may be 0. Multiples of 16 as page_size run at full speed on Hopper GPUs.

    Args:
      query: [T, Hq, D], float16, bfloat16 or float32.
      qo_indptr: integer [B + 1], where the rows of the requests start and end. Values are clamped
        to 0..T and to be no less than the ones before.
      k_pages: [P, Hkv, page_size, D], or [P, page_size, Hkv, D] with ``kv_layout="NHD"``; the dtype
        of ``query``.
      v_pages: like ``k_pages``.
      page_indices: integer [N], as in ``paged_decode``.
      page_indptr: integer [B + 1], as there.
      last_page_len: integer [B], as there.
      is_causal: hide the keys past a row's own position.
      max_seqlen_q: an int, the most query rows of a request. It may size the grid of the kernel:
        with a smaller one results are right still, and slower.
      kv_layout: "HND" or "NHD", the order of the heads and rows of a page.
      scale: factor on the logits, a Python number; None for 1/sqrt(D).
      local_window_size: (left, right) or an int for both, in keys from a row's own position; None,
        also in the pair, for no limit. With ``is_causal``, right is 0.
      sink_tokens: the first so many keys stay visible outside the window too.
      sinks: [Hq] floats, an extra logit a head in the softmax denominator, with no value.
      alibi_slopes: [Hq] or [B, Hq] floats; adds -slope * abs(p - j) to the logit of key j, after
        the soft cap.
      logits_soft_cap: a positive number c turns each scaled logit x into c * tanh(x / c).
      implementation: None, "cuda" or "reference", as in ``paged_decode``.

    Returns:
      ``(out, lse)``: out [T, Hq, D] in the dtype of ``query``; lse [T, Hq] in float32, the natural
      log of the softmax denominator, ``sinks`` included. Rows that see no key, because a request
      has fewer keys than rows, and rows of no request give 0 and -inf.

    Raises:
      What ``paged_decode`` raises.

    Transformations are those of ``paged_decode``, with "jax_baracuda_paged_prefill" for its export.

    Example::

      >>> import functools, jax, jax.numpy as jnp
      >>> from jax_baracuda import paged_prefill
      >>> query = jnp.ones((9, 32, 128), jnp.bfloat16)
      >>> store = jnp.ones((64, 8, 16, 128), jnp.bfloat16)
      >>> out, lse = jax.jit(functools.partial(paged_prefill, max_seqlen_q=8))(
      ...     query,
      ...     jnp.array([0, 8, 9]),        # a chunk of 8 rows, and a decode of one
      ...     store, store,
      ...     jnp.array([7, 2, 9, 0, 0]),  # request 0 has pages 7 and 2, request 1 page 9
      ...     jnp.array([0, 2, 3]),
      ...     jnp.array([5, 16]))          # 16 + 5 keys, and 16
      >>> out.shape, lse.shape
      ((9, 32, 128), (9, 32))

    Sources: those of ``paged_decode`` and ``flash_attention``; prompts in chunks, A. Agrawal et
    al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", 2024,
    arXiv:2403.02310.
    """
    given = _arrays(
        query=query,
        qo_indptr=qo_indptr,
        k_pages=k_pages,
        v_pages=v_pages,
        page_indices=page_indices,
        page_indptr=page_indptr,
        last_page_len=last_page_len,
    )
    given |= _optional(sinks=sinks, alibi_slopes=alibi_slopes)
    shape = shapes.check_operands(**given, kv_layout=kv_layout)
    options = shapes.check_prefill_options(
        shape.head_dim,
        is_causal=is_causal,
        max_seqlen_q=max_seqlen_q,
        kv_layout=kv_layout,
        scale=scale,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
    )
    return _call("paged_prefill", given, options, implementation)


def _arrays(**given: ArrayLike) -> dict[str, Any]:
    return {name: convert.array(name, value) for name, value in given.items()}


def _optional(**given: ArrayLike | None) -> dict[str, Any]:
    return {name: convert.optional(name, value) for name, value in given.items()}


def _call(
    kind: shapes.Kind,
    given: dict[str, Any],
    options: shapes.DecodeOptions | shapes.PrefillOptions,
    implementation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """(out, lse) of arguments that were checked."""
    validation.check_implementation(implementation)
    integers = {name: convert.int32(given[name]) for name in shapes.INTEGERS if name in given}
    per_head = {name: convert.per_head(given[name]) for name in shapes.PER_HEAD}
    arrays = given | integers | per_head
    operands = compat.match_varying(*(arrays[name] for name in shapes.OPERANDS[kind]))
    call: Callable[..., Any] = functools.partial(primitive.OPS[kind].reference, **options)
    if implementation != "reference":
        insist = implementation == "cuda"
        call = functools.partial(primitive.bind, kind, **options, insist=insist)
    return partition.in_auto_mode(kind, call, operands, nhd=options["nhd"])
