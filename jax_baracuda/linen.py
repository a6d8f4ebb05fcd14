"""flash_attention in Flax Linen: an ``attention_fn`` for ``MultiHeadDotProductAttention``.

Example::

  >>> from flax import linen
  >>> from jax_baracuda.linen import dot_product_attention
  >>> layer = linen.MultiHeadDotProductAttention(num_heads=8, attention_fn=dot_product_attention)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import linen
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, PrecisionLike

from jax_baracuda._src.attention import flax_layers
from jax_baracuda._src.attention.flax_layers import Implementation

__all__ = ["dot_product_attention"]


# The layer looks at the names of the parameters to know what to pass: each is spelled out.
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
    module: linen.Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., jax.Array] | None = None,
    qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
    attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
    *,
    is_causal: bool = False,
    implementation: Implementation = None,
) -> jax.Array:
    """``flax.linen.dot_product_attention`` on the flash_attention kernels.

    Give it to ``linen.MultiHeadDotProductAttention(attention_fn=...)``, which passes all but the
    keyword-only arguments (bind those with ``functools.partial``), or call it as the original. In
    decode mode it reads the layer's cache.

    Args:
      query: [batch..., T, N, D]; any number of batch dimensions, none among them.
      key: [batch..., S, K, D]; N a multiple of K (Flax: equal to it).
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
      force_fp32_for_softmax: not used: the softmax is always in float32.
      einsum_dot_general: if given, as for quantized products, the call goes to Flax's own function.
      qk_attn_weights_einsum: likewise.
      attn_weights_value_einsum: likewise.
      is_causal: query i sees keys j <= i, so that no mask array is needed. Not for decode mode,
        whose one query is row 0.
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
    query, key, value = promote_dtype(query, key, value, dtype=dtype)
    special = {
        "module": module,
        "einsum_dot_general": einsum_dot_general,
        "qk_attn_weights_einsum": qk_attn_weights_einsum,
        "attn_weights_value_einsum": attn_weights_value_einsum,
    }
    given = [f"{name} is given" for name, argument in special.items() if argument is not None]
    obstacle = given[0] if given else flax_layers.why_not(query, key, value)
    if flax_layers.left_to_flax(obstacle, implementation):
        if is_causal:  # Flax's function does not know it
            mask = flax_layers.causal_mask(mask, query.shape[-3], key.shape[-3])
        out: jax.Array = linen.dot_product_attention(
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
            force_fp32_for_softmax,
            einsum_dot_general,
            qk_attn_weights_einsum,
            attn_weights_value_einsum,
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
