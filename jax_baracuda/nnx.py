"""flash_attention in Flax NNX: an ``attention_fn`` for ``flax.nnx.MultiHeadAttention``.

Example::

  >>> from flax import nnx
  >>> from jax_baracuda.nnx import dot_product_attention
  >>> layer = nnx.MultiHeadAttention(
  ...     num_heads=8, in_features=512, decode=False, attention_fn=dot_product_attention,
  ...     rngs=nnx.Rngs(0))
"""

from __future__ import annotations

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, PrecisionLike, PromoteDtypeFn

from jax_baracuda._src.attention import flax_layers
from jax_baracuda._src.attention.flax_layers import Implementation

__all__ = ["dot_product_attention"]


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Dtype | None = None,
    precision: PrecisionLike = None,
    module: nnx.Module | None = None,
    promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
    is_causal: bool = False,
    *,
    implementation: Implementation = None,
) -> jax.Array:
    """``flax.nnx.dot_product_attention`` on the flash_attention kernels.

    Give it to ``nnx.MultiHeadAttention(attention_fn=...)``, which passes all but the last argument
    (bind that one with ``functools.partial``), or call it as the original. In decode mode it reads
    the layer's cache.

    Args:
      query: [batch..., T, N, D]; any number of batch dimensions, none among them.
      key: [batch..., S, K, D]; N a multiple of K.
      value: [batch..., S, K, Dv].
      bias: added to the logits; broadcastable to [batch..., N, T, S]. It has a gradient.
      mask: broadcastable likewise; nonzero keeps a key.
      broadcast_dropout: whether all sequences and heads drop the same weights, as in Flax.
      dropout_rng: a PRNG key, required for dropout. Which weights are dropped is decided by
        Philox in the kernel: the same probabilities as in Flax, other bits.
      dropout_rate: the probability with which an attention weight is dropped, in [0, 1).
      deterministic: True for no dropout.
      dtype: of the computation; None for that of the inputs.
      precision: not used: products are exact to float32, or of 16-bit numbers summed in float32.
      module: if given, the attention weights are sown into it. The kernel never has them, so the
        call goes to Flax's own function, its memory and its dropout bits.
      promote_dtype: how the inputs come to one dtype.
      is_causal: query i sees keys j <= i, as in ``jax.nn.dot_product_attention``.
      implementation: None runs the CUDA kernels on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run them; "reference" is always plain jax.numpy.

    Returns:
      [batch..., T, N, Dv], in the promoted dtype. A query that sees no key gives 0; Flax gives the
      mean of all values.

    What the kernels do not take (a dtype other than float16, bfloat16 and float32, a head dimension
    above 256) goes to Flax's own function, unless ``implementation`` is "cuda".

    Raises:
      ValueError: at trace time, for shapes that do not fit, a rate outside of [0, 1), or dropout
        without ``dropout_rng``.
      NotImplementedError: at trace time, for what the kernels do not take, with
        ``implementation="cuda"``.

    Example::

      >>> import jax.numpy as jnp
      >>> x = jnp.ones((2, 128, 8, 64), jnp.bfloat16)
      >>> dot_product_attention(x, x, x, is_causal=True).shape
      (2, 128, 8, 64)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    obstacle = "module is given" if module is not None else flax_layers.why_not(query, key, value)
    if flax_layers.left_to_flax(obstacle, implementation):
        out: jax.Array = nnx.dot_product_attention(
            query,
            key,
            value,
            bias,
            mask,
            broadcast_dropout,
            dropout_rng,
            dropout_rate,
            deterministic,
            dtype,
            precision,
            module,
            promote_dtype,
            is_causal,
        )
        return out
    return flax_layers.attend(
        query,
        key,
        value,
        bias,
        mask,
        is_causal=is_causal,
        dropout_rng=dropout_rng,
        dropout_rate=0.0 if deterministic else dropout_rate,
        broadcast_dropout=broadcast_dropout,
        implementation=implementation,
    )
