"""Scans over layers that keep what an op returned in each: XLA runs every kernel once a layer."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

import jax_baracuda
from jax_baracuda.quant import Int4Weight

LAYERS, B, S, H, D, PAGE = 3, 2, 64, 4, 64, 16
CAPACITY, FEATURES = 8 * PAGE, H * D
POSITIONS = jnp.arange(S)
LENGTHS = jnp.array([100, 37])
TABLE = {
    "page_indices": jnp.arange(2 * CAPACITY // PAGE),
    "page_indptr": jnp.array([0, CAPACITY // PAGE, 2 * CAPACITY // PAGE]),
}
LAST_PAGE = jnp.array([5, 6])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


# Each program has the arrays x and those of the layers, and the kernels that it should run.


def int4_gradients(x, layers):
    """LoRA matrices read the product, and so does a gate: a residual of both."""

    def layer(x, parts):
        weight, down, up = parts
        product = jax_baracuda.int4_matmul(x, weight)
        return x + jax.nn.silu(product) + (product @ down) @ up, None

    def loss(x, down, up):
        out, _ = jax.lax.scan(layer, x, (layers["weight"], down, up))
        return (out.astype(jnp.float32) ** 2).mean()

    return jax.grad(loss, argnums=(0, 1, 2))(x, layers["down"], layers["up"])


def rope_gradients(x, layers):
    def layer(x, bias):
        rows = jax_baracuda.apply_rope((x + bias).reshape(B, S, H, D), POSITIONS)
        return x + (rows * rows).reshape(x.shape), None

    def loss(x, bias):
        return (jax.lax.scan(layer, x, bias)[0].astype(jnp.float32) ** 2).mean()

    return jax.grad(loss, argnums=(0, 1))(x, layers["bias"])


def decode(query, stores):
    def layer(query, store):
        out, lse = jax_baracuda.flash_decode(query, store, store, LENGTHS, return_lse=True)
        return query + jnp.tanh(out), (out, lse)

    return jax.lax.scan(layer, query, stores["cache"])


def paged_decode(query, stores):
    def layer(query, pages):
        kept = jax_baracuda.paged_decode(query, pages, pages, **TABLE, last_page_len=LAST_PAGE)
        return query + jnp.tanh(kept[0]), kept

    return jax.lax.scan(layer, query, stores["pages"])


def paged_prefill(query, stores):
    def layer(query, pages):
        bounds = jnp.arange(B + 1)
        kept = jax_baracuda.paged_prefill(
            query, bounds, pages, pages, **TABLE, last_page_len=LAST_PAGE, max_seqlen_q=1
        )
        return query + jnp.tanh(kept[0]), kept

    return jax.lax.scan(layer, query, stores["pages"])


def cache_append(query, stores):
    """The caches of the layers as the xs and ys of the scan, read after the append."""

    def layer(query, store):
        rows = query[:, :, None]
        store, other = jax_baracuda.kv_cache_append(store, store, rows, rows, LENGTHS)
        out = jax_baracuda.flash_decode(query, store, other, LENGTHS + 1)
        return query + jnp.tanh(out), (store, other)

    return jax.lax.scan(layer, query, stores["cache"])


def paged_append(query, stores):
    def layer(query, pages):
        place = jnp.arange(B), jnp.array([CAPACITY - 1, 3])
        pages, other = jax_baracuda.paged_append(pages, pages, query, query, *place, **TABLE)
        out, _ = jax_baracuda.paged_decode(query, pages, other, **TABLE, last_page_len=LAST_PAGE)
        return query + jnp.tanh(out), (pages, other)

    return jax.lax.scan(layer, query, stores["pages"])


PROGRAMS = {
    int4_gradients: {"int4_matmul": 1},
    rope_gradients: {"rope": 2},
    decode: {"flash_decode": 1},
    paged_decode: {"paged_decode": 1},
    paged_prefill: {"paged_prefill": 1},
    cache_append: {"append": 1, "flash_decode": 1},
    paged_append: {"append": 1, "paged_decode": 1},
}
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


def arguments(program):
    if "gradients" not in program.__name__:
        stores = {
            "cache": normal(1, LAYERS, B, H, CAPACITY, D),
            "pages": normal(1, LAYERS, 2 * CAPACITY // PAGE, H, PAGE, D),
        }
        return normal(0, B, H, D), stores
    weights = [Int4Weight.quantize(normal(n, FEATURES, FEATURES) / 16) for n in range(LAYERS)]
    return normal(0, B, S, FEATURES), {
        "weight": jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights),
        "down": normal(1, LAYERS, FEATURES, 16),
        "up": normal(2, LAYERS, 16, FEATURES),
        "bias": normal(3, LAYERS, FEATURES),
    }


@each_program
def test_a_barrier_follows_every_kernel(program):
    lowered = jax.jit(program).trace(*arguments(program)).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    calls = re.findall(r"(%\w+)(?::\d+)? = stablehlo.custom_call @jax_baracuda_(\w+)\(", text)
    assert collections.Counter(target for _, target in calls) == PROGRAMS[program]
    for name, _ in calls:
        assert re.search(rf"optimization_barrier {name}\b", text), name


@pytest.mark.gpu
@each_program
def test_xla_runs_every_kernel_once_a_layer(program):
    """What a scan stacks is copied there: no second call writes it."""
    compiled = jax.jit(program).lower(*arguments(program)).compile()
    targets = re.findall(r'custom_call_target="jax_baracuda_(\w+)"', compiled.as_text())
    assert collections.Counter(targets) == PROGRAMS[program]
