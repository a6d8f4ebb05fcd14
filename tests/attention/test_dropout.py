"""Which weights dropout keeps: rates, independence, and that reference and oracle agree on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda._src.attention.dropout import STEPS, keep_mask, threshold
from jax_baracuda.testing.attention_cases import AttentionCase, make_attention_inputs
from jax_baracuda.testing.attention_oracle import dropout_keep

SIZE = 2048


@functools.cache
def dropped(rate):
    words, places = jnp.array([0, 7, 3, 1], jnp.uint32), jnp.arange(SIZE)
    kept = jax.jit(keep_mask, static_argnums=3)(words, places[:, None], places[None], rate)
    return ~np.asarray(kept)


def standardized(rate):
    """Numbers of mean 0 and variance 1, if rates are what they should be."""
    expected = threshold(rate) / STEPS
    return (dropped(rate) - expected) / np.sqrt(expected * (1 - expected))


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.1, 1 / 3, 0.5, 0.77, 0.98])
def test_rates(rate):
    """Of all weights, and of rows and columns, which vary as sums of independent numbers do."""
    assert abs(threshold(rate) / STEPS - rate) <= 0.5 / STEPS
    x = standardized(rate)
    assert abs(x.mean()) * SIZE < 4
    for axis in (0, 1):
        sums = x.mean(axis) * np.sqrt(SIZE)
        assert 0.9 < sums.std() < 1.1
        assert abs(sums).max() < 8


@pytest.mark.parametrize("rate", [2**-17, 2**-15, 1 - 2**-15, 1 - 2**-20])
def test_the_least_and_the_greatest_rates(rate):
    steps = threshold(rate)
    assert steps == min(round(rate * STEPS), STEPS - 1)
    expected = steps / STEPS * SIZE**2
    count = dropped(rate).sum()
    assert abs(count - expected) <= 5 * np.sqrt(min(expected, SIZE**2 - expected))


def draws(rate):
    """The 64 weights that share a random draw, of a block of 32 x 64: [draws, 64]."""
    x = standardized(rate).reshape(SIZE // 32, 4, 8, SIZE // 64, 8, 4, 2)
    return x.transpose(0, 2, 3, 5, 1, 4, 6).reshape(-1, 64).astype(np.float32)


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.6])
def test_pairs_of_a_draw_are_independent(rate):
    x = draws(rate)
    products = x.T @ x / np.sqrt(len(x))
    assert abs(products[np.triu_indices(64, 1)]).max() < 5
    assert abs(np.diag(products) / np.sqrt(len(x)) - 1).max() < 0.1


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.6])
def test_threes_of_a_draw_are_independent(rate):
    """Sums of words depend on both of them together."""
    x = draws(rate)
    for a in range(64):
        products = (x * x[:, a, None]).T @ x / np.sqrt(len(x))
        others = products[a + 1 :, a + 1 :]
        assert abs(others[np.triu_indices(len(others), 1)]).max(initial=0) < 6


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (8, 0), (0, 16), (0, 32), (16, 0)])
def test_neighbours_are_independent(shift):
    x = standardized(0.2)
    products = x * np.roll(x, shift, (0, 1))
    assert abs(products.mean()) * SIZE < 4


def test_seeds_heads_and_sequences_differ():
    rows, columns = jnp.arange(256)[:, None], jnp.arange(256)[None]
    words = [(0, 7, 0, 0), (7, 0, 0, 0), (0, 8, 0, 0), (0, 7, 1, 0), (0, 7, 0, 1)]
    masks = [keep_mask(jnp.array(w, jnp.uint32), rows, columns, 0.5) for w in words]
    for n, mask in enumerate(masks):
        for other in masks[:n]:
            assert abs((np.asarray(mask) == np.asarray(other)).mean() - 0.5) < 0.01


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_reference_and_oracle_agree(rate):
    case = AttentionCase("dropout", query_length=75, key_length=131, kv_heads=1, dropout_rate=rate)
    inputs = make_attention_inputs(case)
    seed = [int(word) for word in inputs.dropout_seed]
    rows, columns = jnp.arange(75)[:, None], jnp.arange(131)[None]
    for n in range(2):
        for head in range(2):
            words = jnp.array([*seed, head, n], jnp.uint32)
            np.testing.assert_array_equal(
                keep_mask(words, rows, columns, rate), dropout_keep(inputs, case, n, head)
            )
