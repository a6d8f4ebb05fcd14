"""What bench_paged.py times on jax where stores are written: appends, and steps through layers.

The state of a program is donated and carried, as in a server: XLA may write it in place, and the
row says how many copies of a store the compiled program has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
from paged_cells import PAGE, AppendCell, Job, LayersCell, RopeCell, page_table
from paged_inputs import keys_and_values, normal, struct, structs
from paged_reads import SAMPLES, history, numbers

import jax_baracuda
from jax_baracuda.testing import timing

State = tuple[jax.Array, ...]


def carried(program: Callable[..., State], state: Any, *operands: Any) -> Any:
    """Compiles a program that takes the place of its state."""
    return jax.jit(program, donate_argnums=0).lower(state, *operands).compile()


class Append:
    """Rows behind every request, in one set of pages (or layer of caches) after another."""

    def stores(self, cell: AppendCell) -> tuple[int, ...]:
        """The shape of all sets together: one store of pages, or stacked caches."""
        rows = cell.sets * cell.batch * cell.capacity
        if cell.op == "paged_append":
            return cell.store_shape(rows, PAGE)
        return cell.sets, cell.batch, cell.kv_heads, cell.capacity, cell.head_dim

    def rows(self, cell: AppendCell, heads: int) -> tuple[int, ...]:
        """The shape of new rows of so many heads."""
        if cell.op == "paged_append":
            return cell.tokens, heads, cell.head_dim
        return cell.batch, heads, cell.new, cell.head_dim

    def tables(self, cell: AppendCell) -> tuple[Any, ...]:
        """Where the rows go; for pages the indices of every set, and what all sets share."""
        if cell.op == "kv_cache_append":
            return (cell.starts,)
        per_set = cell.batch * cell.capacity // PAGE
        capacities = (cell.capacity,) * cell.batch
        table = page_table(capacities * cell.sets, PAGE, cell.sets * per_set)
        requests = np.repeat(np.arange(cell.batch, dtype=np.int32), cell.new)
        offsets = np.tile(np.arange(cell.new, dtype=np.int32), cell.batch)
        positions = cell.starts[requests] + offsets
        indptr = table.indptr[: cell.batch + 1]
        return requests, positions, tuple(table.indices.reshape(cell.sets, per_set)), indptr

    def append(
        self, job: Job, cell: AppendCell, state: Any, rows: Any, tables: Any, index: int
    ) -> Any:
        """One call, on the set of that index."""
        k_store, v_store, *query = state
        options: dict[str, Any] = {"rope": {}, "query": query[0]} if cell.rope else {}
        if job.impl == "xla":
            options["implementation"] = "reference"
        if cell.op == "kv_cache_append":
            (starts,) = tables
            return jax_baracuda.kv_cache_append(
                k_store, v_store, *rows, starts, layer=index, **options
            )
        requests, positions, indices, indptr = tables
        return jax_baracuda.paged_append(
            k_store, v_store, *rows, requests, positions, indices[index], indptr, **options
        )

    def calls(self, job: Job, cell: AppendCell) -> int:
        """Calls of a program; XLA's scatters are many operations each, and few calls tell."""
        return min(cell.calls, 8) if job.impl == "xla" else cell.calls

    def operands(self, cell: AppendCell) -> tuple[Any, ...]:
        """The new rows of each set, and where they go."""
        rows = [keys_and_values(self.rows(cell, cell.kv_heads), i) for i in range(cell.sets)]
        return tuple(rows), jax.device_put(self.tables(cell))

    def state(self, cell: AppendCell) -> State:
        """Both stores, and the query that is rotated."""
        query = (normal(self.rows(cell, cell.query_heads), 99),) if cell.rope else ()
        return (*keys_and_values(self.stores(cell), 7), *query)

    def compile(self, job: Job, cell: AppendCell) -> Any:
        """The chain, what checks it, and the number of copies of a store in the chain."""
        store = struct(*self.stores(cell))
        query = (struct(*self.rows(cell, cell.query_heads)),) if cell.rope else ()
        state = (store, store, *query)
        row = struct(*self.rows(cell, cell.kv_heads))
        operands = (((row, row),) * cell.sets, structs(self.tables(cell)))

        def chain(state: Any, rows: Any, tables: Any) -> Any:
            for call in range(self.calls(job, cell)):
                index = call % cell.sets
                state = self.append(job, cell, state, rows[index], tables, index)
            return state

        program = carried(chain, state, *operands)
        copies = hlo.copies(program.as_text(), store.size)
        check = jax.jit(self.check(job, cell)).lower(state, *operands).compile()
        return program, check, len(copies)

    def check(self, job: Job, cell: AppendCell) -> Callable[..., jax.Array]:
        """A function that gives the largest relative error of the last request's rows."""
        last = cell.batch - 1
        start = int(cell.starts[last])
        place = slice(start, start + cell.new)
        positions = start + jnp.arange(cell.new)

        def new(rows: jax.Array) -> jax.Array:
            """[new, heads, D] of the last request."""
            if cell.op == "paged_append":
                return rows.reshape(cell.batch, cell.new, *rows.shape[1:])[last]
            return jnp.moveaxis(rows[last], 0, 1)

        def stored(store: jax.Array) -> jax.Array:
            if cell.op == "kv_cache_append":
                return jnp.moveaxis(store[0, last, :, place], 0, 1)
            capacities = (cell.capacity,) * cell.batch * cell.sets
            table = page_table(capacities, PAGE, store.shape[0])
            return jnp.moveaxis(history(store, table, last, place.stop)[:, place], 0, 1)

        def error(state: Any, rows: Any, tables: Any) -> jax.Array:
            got = self.append(job, cell, state, rows[0], tables, 0)
            turn = oracle.rotate if cell.rope else lambda x, positions: x
            pairs = [
                (stored(got[0]), turn(new(rows[0][0]).astype(jnp.float32), positions)),
                (stored(got[1]), new(rows[0][1])),
            ]
            if cell.rope:
                pairs.append((new(got[2]), turn(new(state[2]).astype(jnp.float32), positions)))
            return jnp.stack([oracle.relative_error(*pair) for pair in pairs]).max()

        return error

    def inputs(self, job: Job, cell: AppendCell) -> Any:
        """What is read; what is written is made anew for every job, which takes it."""
        del job
        return self.operands(cell)

    def measure(
        self, job: Job, cell: AppendCell, programs: Any, inputs: Any, seconds: float
    ) -> dict[str, Any]:
        program, check, copies = programs
        state = self.state(cell)
        error = oracle.require(check(state, *inputs))
        calls = self.calls(job, cell)
        timed = timing.time_carried(
            program, state, inputs, calls=calls, seconds=seconds, samples=SAMPLES
        )
        return numbers(timed, error_vs_float32=error, store_copies=copies)


class Rope:
    """apply_rope alone, in a chain, and what XLA makes of plain jnp."""

    def op(self, job: Job) -> Callable[..., jax.Array]:
        return oracle.rotate if job.impl == "xla" else jax_baracuda.apply_rope

    def compile(self, job: Job, cell: RopeCell) -> Any:
        """The chain, and what checks it."""
        x = struct(cell.tokens, cell.query_heads, cell.head_dim)
        positions = struct(cell.tokens, dtype=jnp.int32)

        def error(x: jax.Array, positions: jax.Array) -> jax.Array:
            exact = oracle.rotate(x.astype(jnp.float32), positions)
            return oracle.relative_error(self.op(job)(x, positions), exact)

        chain = timing.compile_chain(self.op(job), x, ((positions,),), cell.calls)
        return chain, jax.jit(error).lower(x, positions).compile()

    def inputs(self, job: Job, cell: RopeCell) -> Any:
        del job
        x = normal((cell.tokens, cell.query_heads, cell.head_dim), 0)
        return x, jnp.arange(cell.tokens, dtype=jnp.int32)

    def measure(
        self, job: Job, cell: RopeCell, programs: Any, inputs: Any, seconds: float
    ) -> dict[str, Any]:
        chain, check = programs
        x, positions = inputs
        error = oracle.require(check(x, positions))
        timed = timing.time_chained(
            self.op(job),
            x,
            [(positions,)],
            calls=cell.calls,
            seconds=seconds,
            samples=SAMPLES,
            compiled=chain,
        )
        return numbers(timed, error_vs_float32=error)


class Layers:
    """A decode step: every layer appends a row a request, rotated, and reads all rows.

    "jax_baracuda" scans over layers whose stores are one array each for K and V; "unrolled" makes
    the same calls one after another on an array a layer, "appends" and "decodes" those of one op.
    """

    # What the programs without a scan call in a layer.
    UNROLLED: Mapping[str, tuple[str, ...]] = {
        "unrolled": ("append", "decode"),
        "appends": ("append",),
        "decodes": ("decode",),
    }

    def tables(self, cell: LayersCell) -> tuple[np.ndarray, ...]:
        """Requests, positions, page indices of the first layer, indptr, last_page_len."""
        requests = np.arange(cell.batch, dtype=np.int32)
        positions = np.full(cell.batch, cell.length - 1, np.int32)
        return requests, positions, *cell.table()

    def layer(
        self,
        state: Any,
        rows: Any,
        tables: Any,
        first_page: Any,
        ops: tuple[str, ...] = UNROLLED["unrolled"],
    ) -> Any:
        """One layer on the pages of a store from ``first_page`` on."""
        query, k_store, v_store = state
        requests, positions, indices, indptr, last = tables
        indices = indices + first_page
        if "append" in ops:
            k_store, v_store, query = jax_baracuda.paged_append(
                k_store,
                v_store,
                *rows,
                requests,
                positions,
                indices,
                indptr,
                query=query,
                rope={},
            )
        if "decode" in ops:
            query, _ = jax_baracuda.paged_decode(query, k_store, v_store, indices, indptr, last)
        return query, k_store, v_store

    def step(self, job: Job, cell: LayersCell, state: Any, rows: Any, tables: Any) -> Any:
        """All layers once."""
        if job.impl in self.UNROLLED:
            ops = self.UNROLLED[job.impl]
            query, stores = state
            written = []
            for index, store in enumerate(stores):
                row = [array[index] for array in rows]
                query, *store = self.layer((query, *store), row, tables, 0, ops)
                written.append(tuple(store))
            return query, tuple(written)

        def body(state: Any, xs: Any) -> tuple[Any, None]:
            index, *row = xs
            return self.layer(state, row, tables, index * cell.pages), None

        return jax.lax.scan(body, state, (jnp.arange(cell.layers), *rows))[0]

    def state(self, job: Job, cell: LayersCell) -> Any:
        """The query, and the stores of all layers or of each."""
        query = normal((cell.batch, cell.query_heads, cell.head_dim), 99)
        if job.impl in self.UNROLLED:
            shape = cell.store_shape(cell.pages * PAGE, PAGE)
            return query, tuple(keys_and_values(shape, index) for index in range(cell.layers))
        return query, *keys_and_values(cell.store_shape(cell.layers * cell.pages * PAGE, PAGE), 0)

    def state_of(self, job: Job, cell: LayersCell) -> Any:
        """What ``state`` makes, to compile for."""
        query = struct(cell.batch, cell.query_heads, cell.head_dim)
        if job.impl in self.UNROLLED:
            store = struct(*cell.store_shape(cell.pages * PAGE, PAGE))
            return query, ((store, store),) * cell.layers
        store = struct(*cell.store_shape(cell.layers * cell.pages * PAGE, PAGE))
        return query, store, store

    def compile(self, job: Job, cell: LayersCell) -> Any:
        """Some steps, what checks one step, and the number of copies of a layer's store."""
        row = struct(cell.layers, cell.batch, cell.kv_heads, cell.head_dim)
        rows, tables = (row, row), structs(self.tables(cell))
        state = self.state_of(job, cell)

        def steps(state: Any, rows: Any, tables: Any) -> Any:
            for _ in range(cell.steps):
                state = self.step(job, cell, state, rows, tables)
            return state

        program = carried(steps, state, rows, tables)
        store = cell.pages * PAGE * cell.kv_heads * cell.head_dim
        copies = hlo.copies(program.as_text(), store)
        if job.impl in self.UNROLLED:
            return program, None, len(copies)
        check = jax.jit(self.exact(cell)).lower(state, rows, tables).compile()
        return program, check, len(copies)

    def exact(self, cell: LayersCell) -> Callable[..., jax.Array]:
        """What the steps of a program make of the last request's query, in float32."""
        last, table = cell.batch - 1, cell.table()

        def exact(state: Any, rows: Any, tables: Any) -> jax.Array:
            del tables
            query, *stores = state
            position = jnp.array([cell.length - 1])

            def layer(query: jax.Array, xs: Any) -> tuple[jax.Array, None]:
                index, *row = xs
                k, v = (
                    history(store, table, last, cell.length, index * cell.pages) for store in stores
                )
                k, v = k.astype(jnp.float32), v.astype(jnp.float32)
                key, value = (x[last].astype(jnp.float32) for x in row)
                k = k.at[:, -1].set(oracle.rotate(key[None], position)[0])
                v = v.at[:, -1].set(value)
                query = oracle.rotate(query[None], position)
                return oracle.attend(query, k, v)[0], None

            def step(query: jax.Array, _: None) -> tuple[jax.Array, None]:
                return jax.lax.scan(layer, query, (jnp.arange(cell.layers), *rows))

            query = query[last].astype(jnp.float32)
            return jax.lax.scan(step, query, None, length=cell.steps)[0]

        return exact

    def rows(self, cell: LayersCell) -> tuple[jax.Array, jax.Array]:
        """New keys and values of every layer, [L, B, Hkv, D]."""
        return keys_and_values((cell.layers, cell.batch, cell.kv_heads, cell.head_dim), 50)

    def inputs(self, job: Job, cell: LayersCell) -> Any:
        """What is read alone; the state is made anew for every job, which takes it."""
        del job
        return self.rows(cell), jax.device_put(self.tables(cell))

    def measure(
        self, job: Job, cell: LayersCell, programs: Any, inputs: Any, seconds: float
    ) -> dict[str, Any]:
        program, exact, copies = programs
        state = self.state(job, cell)
        found: dict[str, Any] = {"store_copies": copies}
        if exact is not None:
            expected = exact(state, *inputs)
            state = program(state, *inputs)
            got = state[0][-1]
            found["error_vs_float32"] = oracle.require(oracle.relative_error(got, expected), 2e-2)
        timed = timing.time_carried(
            program, state, inputs, calls=cell.steps, seconds=seconds, samples=SAMPLES
        )
        return numbers(timed, **found)
