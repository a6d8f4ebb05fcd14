"""What bench_paged.py times on jax where stores are read: decode, chunked prefill, shared prefixes.

A bench compiles the program of a job, makes its inputs, and measures. Page tables are operands, as
in a server; page sizes and contiguous caches are different views of the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from attention_peers import compiled, empty
from paged_cells import PAGE, DecodeCell, Job, PrefillCell, PrefixCell, Table
from paged_inputs import keys_and_values, normal, struct, structs

import jax_baracuda
from jax_baracuda import paged
from jax_baracuda.testing import timing

SAMPLES = 5
Call = Callable[..., jax.Array]


def numbers(timed: timing.Timing, **others: Any) -> dict[str, Any]:
    """A measurement's part of a row."""
    return others | {"ms": timed.ms, "fastest": timed.fastest, "slowest": timed.slowest}


def history(
    store: jax.Array, table: Table, request: int, length: int, first_page: Any = 0
) -> jax.Array:
    """A request's rows [Hkv, length, D] of a store [P, Hkv, page_size, D], by a host table."""
    pages = table.indices[table.indptr[request] : table.indptr[request + 1]]
    rows = jnp.moveaxis(store[jnp.asarray(pages) + first_page], 1, 0)
    return rows.reshape(store.shape[1], -1, store.shape[3])[:, :length]


class Rotated:
    """Chains of calls on one query row a request, over rotated sets of stores.

    A subclass gives the op and its operands, and what the op is checked against.
    """

    def tail(self, job: Job, cell: Any) -> tuple[np.ndarray, ...]:
        """What the op takes behind the query and the two stores."""
        raise NotImplementedError

    def op(self, job: Job, cell: Any) -> Call:
        """(query, k_store, v_store, *tail) -> out."""
        raise NotImplementedError

    def rows(self, job: Job, cell: Any, store: jax.Array) -> jax.Array:
        """The keys (or values) of the request that is checked, [Hkv, K, D]."""
        raise NotImplementedError

    def compile(self, job: Job, cell: Any) -> Any:
        """The chain, and for ours what checks it."""
        op, tail = self.op(job, cell), self.tail(job, cell)
        query = struct(cell.batch, cell.query_heads, cell.head_dim)
        store = struct(*cell.store_shape(cell.rows, PAGE))
        operands = (store, store, *structs(tail))
        chain = timing.compile_chain(op, query, (operands,) * cell.sets, cell.calls)
        if job.impl == "pallas":
            return chain, None

        def error(query: jax.Array, k: jax.Array, v: jax.Array, *tail: jax.Array) -> jax.Array:
            history = self.rows(job, cell, k), self.rows(job, cell, v)
            expected = oracle.attend(query[cell.checked][None], *history)
            return oracle.relative_error(op(query, k, v, *tail)[cell.checked], expected)

        return chain, jax.jit(error).lower(query, *operands).compile()

    def inputs(self, job: Job, cell: Any) -> Any:
        """A query and the sets of stores, the same for every job."""
        del job
        shape = cell.store_shape(cell.rows, PAGE)
        stores = [keys_and_values(shape, index) for index in range(cell.sets)]
        return normal((cell.batch, cell.query_heads, cell.head_dim), 99), stores

    def measure(
        self, job: Job, cell: Any, programs: Any, inputs: Any, seconds: float
    ) -> dict[str, Any]:
        chain, check = programs
        query, stores = inputs
        tail = jax.device_put(self.tail(job, cell))
        sets = [(*store, *tail) for store in stores]
        error = {"error_vs_float32": oracle.require(check(query, *sets[0]))} if check else {}
        timed = timing.time_chained(
            self.op(job, cell),
            query,
            sets,
            calls=cell.calls,
            seconds=seconds,
            samples=SAMPLES,
            compiled=chain,
        )
        return numbers(timed, **error)


class Decode(Rotated):
    """paged_decode, and flash_decode and Pallas on as many bytes."""

    def tail(self, job: Job, cell: DecodeCell) -> tuple[np.ndarray, ...]:
        """The table, the lengths, or nothing."""
        lengths = np.array(cell.lengths, np.int32)
        if job.impl == "jax_baracuda":
            return tuple(cell.table(job.page_size))
        if job.impl == "flash_decode_lengths":
            return (lengths,)
        if job.impl == "pallas":
            return cell.table(job.page_size).indices.reshape(cell.batch, -1), lengths
        return ()

    def op(self, job: Job, cell: DecodeCell) -> Call:
        """The stores are seen as pages of the job's size, or as contiguous caches."""
        if job.impl == "jax_baracuda":
            shape = cell.store_shape(cell.rows, job.page_size)
            return lambda q, k, v, *table: jax_baracuda.paged_decode(
                q, k.reshape(shape), v.reshape(shape), *table
            )[0]
        if job.impl.startswith("flash_decode"):
            shape = cell.cache_shape("HND")
            return lambda q, k, v, *lengths: jax_baracuda.flash_decode(
                q, k.reshape(shape), v.reshape(shape), *lengths
            )
        if job.impl == "pallas":
            from jax.experimental.pallas.ops.gpu import paged_attention

            pages, _, *rest = cell.store_shape(cell.rows, job.page_size)
            shape = cell.kv_heads, pages, *rest
            return lambda q, k, v, pages, lengths: paged_attention.paged_attention(
                q, k.reshape(shape), v.reshape(shape), pages, lengths
            )
        raise ValueError(f"unknown implementation {job.impl!r}")

    def rows(self, job: Job, cell: DecodeCell, store: jax.Array) -> jax.Array:
        if job.impl != "jax_baracuda":
            return store.reshape(cell.cache_shape("HND"))[cell.checked]
        store = store.reshape(cell.store_shape(cell.rows, job.page_size))
        return history(store, cell.table(job.page_size), cell.checked, cell.lengths[cell.checked])


class Prefix(Rotated):
    """shared_prefix_decode, and paged_decode whose tables all name the prefix."""

    def tail(self, job: Job, cell: PrefixCell) -> tuple[np.ndarray, ...]:
        """The prefix, its length and the table of the suffixes; or the table of all."""
        prefix, own, whole = cell.tables(job.page_size)
        if job.impl == "paged_decode":
            return tuple(whole)
        return prefix, np.array(cell.prefix, np.int32), *own

    def op(self, job: Job, cell: PrefixCell) -> Call:
        plain = job.impl == "paged_decode"
        decode = jax_baracuda.paged_decode if plain else paged.shared_prefix_decode
        return lambda *operands: decode(*operands)[0]

    def rows(self, job: Job, cell: PrefixCell, store: jax.Array) -> jax.Array:
        whole = cell.tables(job.page_size)[2]
        return history(store, whole, cell.checked, cell.prefix + cell.suffix)


class Prefill:
    """Chunks behind histories: one call for each of a few queries."""

    def tail(self, job: Job, cell: PrefillCell) -> tuple[np.ndarray, ...]:
        """What the op takes behind the query and the two stores: both bounds, or the table."""
        rows = np.concatenate([[0], np.cumsum(cell.queries)]).astype(np.int32)
        if job.impl == "jax_baracuda":
            return rows, *cell.table(job.page_size)
        return rows, np.concatenate([[0], np.cumsum(cell.lengths)]).astype(np.int32)

    def op(self, job: Job, cell: PrefillCell) -> Call:
        """(query, k_store, v_store, *tail) -> out."""
        longest = max(cell.queries)
        if job.impl == "jax_baracuda":
            shape = cell.store_shape(cell.rows, job.page_size)
            return lambda q, k, v, bounds, *table: jax_baracuda.paged_prefill(
                q, bounds, k.reshape(shape), v.reshape(shape), *table, max_seqlen_q=longest
            )[0]
        if job.impl == "flash_attention_varlen":
            shape = cell.rows, cell.kv_heads, cell.head_dim
            return lambda q, k, v, *bounds: jax_baracuda.flash_attention_varlen(
                q,
                k.reshape(shape),
                v.reshape(shape),
                *bounds,
                max_seqlen_q=longest,
                max_seqlen_k=max(cell.lengths),
                is_causal=True,
            )
        raise ValueError(f"unknown implementation {job.impl!r}")

    def compile(self, job: Job, cell: PrefillCell) -> Any:
        """The program of all calls, and what checks the first."""
        op = self.op(job, cell)
        query = struct(cell.tokens, cell.query_heads, cell.head_dim)
        store = struct(*cell.store_shape(cell.rows, PAGE))
        operands = (store, store, *structs(self.tail(job, cell)))
        program = compiled(jax, op, (query,) * cell.calls, *operands)
        check = jax.jit(self.check(op, job, cell)).lower(query, *operands).compile()
        return program, check

    def check(self, op: Call, job: Job, cell: PrefillCell) -> Call:
        """A function that gives the relative error of the last rows of the first request."""
        length, end = cell.lengths[0], cell.queries[0]
        few = slice(max(0, end - 16), end)

        def rows(store: jax.Array) -> jax.Array:
            if job.impl != "jax_baracuda":
                flat = store.reshape(cell.rows, cell.kv_heads, cell.head_dim)
                return jnp.moveaxis(flat[:length], 1, 0)
            store = store.reshape(cell.store_shape(cell.rows, job.page_size))
            return history(store, cell.table(job.page_size), 0, length)

        def error(query: jax.Array, k: jax.Array, v: jax.Array, *tail: jax.Array) -> jax.Array:
            expected = oracle.attend(query[few], rows(k), rows(v))
            return oracle.relative_error(op(query, k, v, *tail)[few], expected)

        return error

    def inputs(self, job: Job, cell: PrefillCell) -> Any:
        """The queries and one store, the same for every job."""
        del job
        shape = cell.tokens, cell.query_heads, cell.head_dim
        queries = tuple(normal(shape, 99 + i) for i in range(cell.calls))
        return queries, keys_and_values(cell.store_shape(cell.rows, PAGE), 0)

    def measure(
        self, job: Job, cell: PrefillCell, programs: Any, inputs: Any, seconds: float
    ) -> dict[str, Any]:
        program, check = programs
        queries, store = inputs
        operands = (*store, *jax.device_put(self.tail(job, cell)))
        error = oracle.require(check(queries[0], *operands))
        timed = timing.time_carried(
            program,
            empty(jax, program),
            (queries, *operands),
            calls=cell.calls,
            seconds=seconds,
            samples=SAMPLES,
        )
        return numbers(timed, error_vs_float32=error)
