"""Generation: a prefill, then the whole decode loop in one compiled call.

Requests are ragged: prompts are padded to the longest one, and from there on every request has its
own length, on the device. The attention kernel reads the lengths there, so the loop body is the
same launches whatever they are, and one captured CUDA graph serves every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .cache import KVCache, append_token, read_layer, write_prompt
from .config import SequenceAttention
from .data import END_OF_TEXT
from .model import Llama, rotary
from .ops import DecodeAttention, causal_attention, decode_attention


class Sampling(NamedTuple):
    """How the next token is drawn. Temperature 0 is greedy; ``top_p`` cuts the tail (nucleus
    sampling, Holtzman et al., 2019, arXiv:1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0


class DecodeState(NamedTuple):
    """Between two tokens: what is in the cache, and the token that goes in next."""

    cache: KVCache
    lengths: Array  # int32 [B], tokens in the cache
    token: Array  # int32 [B], drawn but not yet in the cache
    key: Array  # PRNG key


def pad_prompts(prompts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes -> tokens int32 [B, S] padded on the right, lengths int32 [B].

    An empty prompt becomes the byte between two files: the model starts a new one.
    """
    rows = [prompt or bytes([END_OF_TEXT]) for prompt in prompts]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), END_OF_TEXT, np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[: len(prompt)] = np.frombuffer(prompt, np.uint8)
    return tokens, lengths


def prefill(
    model: Llama, cache: KVCache, tokens: Array, lengths: Array, attention: DecodeAttention
) -> tuple[Array, KVCache]:
    """Runs the prompts (tokens [B, S]) and fills the cache. Returns each one's next-token logits.

    Padding is on the right, where causal attention keeps it out of the prompt's own rows. It leaves
    rows in the cache that are past their request's length: never read, overwritten as it grows.
    """
    whole: SequenceAttention = "jax_nn" if attention == "jax_nn" else "flash_attention"

    def attend(
        query: Array, key: Array, value: Array, cache: KVCache, layer: Array
    ) -> tuple[Array, KVCache]:
        context = causal_attention(query, key, value, whole)
        return context, write_prompt(cache, layer, key, value)

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, cache = model.hidden(tokens, rotary(attend, positions, model.config), cache)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return model.logits(last), cache


def decode_step(
    model: Llama, cache: KVCache, lengths: Array, token: Array, attention: DecodeAttention
) -> tuple[Array, KVCache]:
    """Puts one token a request ([B]) into the cache at ``lengths`` and returns the next logits."""

    def attend(
        query: Array, key: Array, value: Array, cache: KVCache, layer: Array
    ) -> tuple[Array, KVCache]:
        cache = append_token(cache, layer, lengths, key[:, 0], value[:, 0])
        keys, values = read_layer(cache, layer)
        context = decode_attention(query[:, 0], keys, values, lengths + 1, attention)
        return context[:, None], cache

    x, cache = model.hidden(token[:, None], rotary(attend, lengths[:, None], model.config), cache)
    return model.logits(x[:, 0]), cache


def sample(logits: Array, key: Array, sampling: Sampling) -> Array:
    """Draws one token a request: logits [B, V] -> int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(ordered, axis=-1)
        # A token stays when the likelier ones do not reach top_p yet; the likeliest always does.
        stays = jnp.cumsum(shares, axis=-1) - shares < sampling.top_p
        least = jnp.where(stays, ordered, ordered[..., :1]).min(axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def start(
    model: Llama,
    cache: KVCache,
    tokens: Array,
    lengths: Array,
    key: Array,
    sampling: Sampling,
    attention: DecodeAttention,
) -> DecodeState:
    """Prefill, and the first token drawn."""
    logits, cache = prefill(model, cache, tokens, lengths, attention)
    key, draw = jax.random.split(key)
    return DecodeState(cache, lengths, sample(logits, draw, sampling), key)


def advance(
    model: Llama, state: DecodeState, steps: int, sampling: Sampling, attention: DecodeAttention
) -> tuple[Array, DecodeState]:
    """``steps`` decode steps. Returns the tokens, int32 [B, steps], and where to go on from."""

    def body(state: DecodeState, _: None) -> tuple[DecodeState, Array]:
        logits, cache = decode_step(model, state.cache, state.lengths, state.token, attention)
        key, draw = jax.random.split(state.key)
        token = sample(logits, draw, sampling)
        return DecodeState(cache, state.lengths + 1, token, key), state.token

    state, tokens = jax.lax.scan(body, state, length=steps)
    return tokens.T, state


@partial(jax.jit, static_argnames=("steps", "sampling", "attention"), donate_argnames="cache")
def generate(
    model: Llama,
    cache: KVCache,
    tokens: Array,
    lengths: Array,
    key: Array,
    *,
    steps: int,
    sampling: Sampling = Sampling(),
    attention: DecodeAttention = "flash_decode",
) -> tuple[Array, KVCache]:
    """Continues the prompts by ``steps`` tokens: prefill and decode loop in one compiled call.

    tokens int32 [B, S] and lengths int32 [B] are ``pad_prompts``'s; the cache must hold the longest
    prompt and ``steps`` more. Returns int32 [B, steps], and the cache, whose memory is reused.
    """
    state = start(model, cache, tokens, lengths, key, sampling, attention)
    generated, state = advance(model, state, steps, sampling, attention)
    return generated, state.cache


# The same two halves as calls of their own, for output that appears as it is made.
start_jit = jax.jit(start, static_argnames=("sampling", "attention"), donate_argnames="cache")
advance_jit = jax.jit(
    advance, static_argnames=("steps", "sampling", "attention"), donate_argnames="state"
)
