"""Llama (Touvron et al., 2023, arXiv:2302.13971) with grouped-query attention.

Module names are those of the Hugging Face implementation, so that checkpoints map one to one.
Layers are stacked: every parameter of ``layers`` has a leading [num_hidden_layers] axis and the
forward pass scans over it, so that compile time does not grow with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from .config import ModelConfig, Remat, SequenceAttention
from .ops import apply_rope, causal_attention, embed

Cache = Any  # a pytree that only the attention function looks into; None in training


class Attend(Protocol):
    """How a layer attends. It may read and update the cache; it returns the context and the cache.

    query [..., Hq, D], key and value [..., Hkv, D], where [...] is the shape of the tokens; the
    context is like the query. Queries and keys come before the rotary embedding, which some
    kernels do on the way: ``rotary`` makes an ``Attend`` of one that takes them rotated. ``layer``
    is an int32 scalar.
    """

    def __call__(
        self, query: Array, key: Array, value: Array, cache: Cache, layer: Array
    ) -> tuple[Array, Cache]: ...


class Attention(nnx.Module):
    """Grouped-query attention: the projections. The rest is the ``Attend`` that it is given."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = _linear(config, config.hidden_size, heads * config.head_dim, rngs)
        self.k_proj = _linear(config, config.hidden_size, kv_heads * config.head_dim, rngs)
        self.v_proj = _linear(config, config.hidden_size, kv_heads * config.head_dim, rngs)
        self.o_proj = _linear(config, heads * config.head_dim, config.hidden_size, rngs, last=True)

    def __call__(self, x: Array, attend: Attend, cache: Cache, layer: Array) -> tuple[Array, Cache]:
        query, key, value = (
            projection(x).reshape(*x.shape[:-1], -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        context, cache = attend(query, key, value, cache, layer)
        return self.o_proj(context.reshape(*x.shape[:-1], -1)), cache


class MLP(nnx.Module):
    """SwiGLU (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.gate_proj = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.up_proj = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.down_proj = _linear(
            config, config.intermediate_size, config.hidden_size, rngs, last=True
        )

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """One decoder layer: attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.input_layernorm = _norm(config, rngs)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: Array, attend: Attend, cache: Cache, layer: Array) -> tuple[Array, Cache]:
        update, cache = self.self_attn(self.input_layernorm(x), attend, cache, layer)
        x = x + update
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Llama(nnx.Module):
    """The network. ``model(tokens)`` is the training forward pass: [B, S] -> logits [B, S, V].

    >>> model = Llama(ModelConfig(), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 256)
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dtype = jnp.dtype(config.dtype)
        init = nnx.initializers.normal(config.initializer_range)
        self.embed_tokens = nnx.Embed(
            config.vocab_size, config.hidden_size, dtype=dtype, embedding_init=init, rngs=rngs
        )

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = _norm(config, rngs)
        if not config.tie_word_embeddings:
            shape = (config.vocab_size, config.hidden_size)
            self.lm_head = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(
        self,
        tokens: Array,
        *,
        attention: SequenceAttention = "flash_attention",
        remat: Remat = "none",
    ) -> Array:
        def attend(
            query: Array, key: Array, value: Array, cache: Cache, layer: Array
        ) -> tuple[Array, Cache]:
            return causal_attention(query, key, value, attention), cache

        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x, _ = self.hidden(tokens, rotary(attend, positions, self.config), None, remat)
        return self.logits(x)

    def hidden(
        self,
        tokens: Array,
        attend: Attend,
        cache: Cache,
        remat: Remat = "none",
    ) -> tuple[Array, Cache]:
        """Runs the layers: tokens [...] -> final hidden states [..., E], cache."""

        def body(
            carry: tuple[Array, Cache, Array], layer: Layer
        ) -> tuple[tuple[Array, Cache, Array], None]:
            # The layer's number is counted, not scanned over: XLA sees a loop counter, from which
            # it can address a slice of the cache without asking the device where the slice is.
            x, cache, index = carry
            x, cache = layer(x, attend, cache, index)
            return (x, cache, index + 1), None

        table = self.embed_tokens.embedding[...].astype(self.config.dtype)
        carry = (embed(table, tokens), cache, jnp.int32(0))
        (x, cache, _), _ = jax.lax.scan(_rematerialised(body, remat), carry, self.layers)
        return self.norm(x), cache

    def logits(self, x: Array) -> Array:
        """Hidden states [..., E] -> logits [..., V], float32."""
        tied = self.config.tie_word_embeddings
        table = self.embed_tokens.embedding[...] if tied else self.lm_head[...]
        return jnp.einsum(
            "...e,ve->...v", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )


def rotary(attend: Attend, positions: Array, config: ModelConfig) -> Attend:
    """``attend``, which takes queries and keys rotated by ``positions`` (in the tokens' shape)."""

    def rotated(
        query: Array, key: Array, value: Array, cache: Cache, layer: Array
    ) -> tuple[Array, Cache]:
        query = apply_rope(query, positions, theta=config.rope_theta)
        key = apply_rope(key, positions, theta=config.rope_theta)
        return attend(query, key, value, cache, layer)

    return rotated


def create_model(config: ModelConfig, seed: int) -> Llama:
    """Initialises the parameters (float32) in one compiled call."""
    return jax.jit(lambda key: Llama(config, rngs=nnx.Rngs(key)))(jax.random.key(seed))


def cast_model(model: Llama, dtype: str | None = None) -> Llama:
    """The model for inference: floats in ``dtype``, by default that of the arithmetic."""

    def cast(leaf: Array) -> Array:
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)  # four-bit weights have bytes, too
        return leaf.astype(dtype or model.config.dtype) if floats else leaf

    return jax.tree.map(cast, model)


def _rematerialised(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """``body``, of which the backward pass keeps less and computes the rest a second time."""
    if remat == "none":
        return body
    policies = jax.checkpoint_policies
    policy = {
        "save_products": policies.save_from_both_policies(
            _is_attention, policies.dots_with_no_batch_dims_saveable
        ),
        "save_attention": _is_attention,
        "full": policies.nothing_saveable,
    }[remat]
    # In a scan the two runs are in two loops, which XLA cannot merge: no barriers are needed.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


# flash_attention names its two results so. With both kept, its kernel is not run again: the
# backward kernel needs them, the queries, keys and values, and nothing else.
_is_named = jax.checkpoint_policies.save_only_these_names("context", "lse")


def _is_attention(primitive: Any, *args: Any, **params: Any) -> Any:
    """A checkpoint policy: keep what an attention kernel gives, ours or jax.nn's of cuDNN."""
    is_cudnn = primitive.name.startswith("dot_product_attention_fwd")  # its results have no names
    return is_cudnn or _is_named(primitive, *args, **params)


def _linear(
    config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs, *, last: bool = False
) -> nnx.Linear:
    # What a branch adds to the residual stream starts smaller the more branches there are.
    branches = 2 * config.num_hidden_layers
    scale = config.initializer_range / (math.sqrt(branches) if last else 1.0)
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nnx.initializers.normal(scale),
        rngs=rngs,
    )


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    dtype = jnp.dtype(config.dtype)
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs)
