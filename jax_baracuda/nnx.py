"""Flax NNX: an ``attention_fn`` for ``flax.nnx.MultiHeadAttention``, and four-bit linear layers.

Example::

  >>> from flax import nnx
  >>> from jax_baracuda.nnx import dot_product_attention
  >>> layer = nnx.MultiHeadAttention(
  ...     num_heads=8, in_features=512, decode=False, attention_fn=dot_product_attention,
  ...     rngs=nnx.Rngs(0))

``Int4Linear`` is ``flax.nnx.Linear`` on an ``Int4Weight``; ``quantize_model`` puts it into a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, PrecisionLike, PromoteDtypeFn

from jax_baracuda._src.attention import flax_layers
from jax_baracuda._src.attention.flax_layers import Implementation
from jax_baracuda._src.int4 import flax_layers as int4_layers
from jax_baracuda._src.int4.weight import Int4Weight

__all__ = ["Int4Linear", "Int4Param", "dot_product_attention", "quantize_model"]

Path = tuple[Any, ...]


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
      >>> from jax_baracuda.nnx import dot_product_attention
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


class Int4Param(nnx.Variable[Any]):
    """An array of a frozen four-bit weight. It is no ``nnx.Param``: optimizers leave it alone."""


class Int4Linear(nnx.Module):
    """``flax.nnx.Linear`` on a weight of four-bit numbers, for inference and for LoRA.

    Its arrays are ``packed``, ``scales``, ``zeros`` and, after GPTQ's act-order, ``order``, of type
    ``Int4Param``, and ``bias``, an ``nnx.Param``. The input has a gradient, the weight has none.

    Args:
      weight: of shape (IC, OC), such as ``jax_baracuda.quant.load_checkpoint`` gives.
      bias: [OC], or None.
      dtype: of the product: float16, bfloat16 or float32. None for that of the inputs.
      implementation: as for ``int4_matmul``.

    Example::

      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jax_baracuda.nnx import Int4Linear
      >>> dense = nnx.Linear(256, 512, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
      >>> layer = Int4Linear.from_dense(dense)
      >>> layer(jnp.ones((2, 256), jnp.bfloat16)).shape, layer.weight.shape
      ((2, 512), (256, 512))
    """

    def __init__(
        self,
        weight: Int4Weight,
        bias: jax.Array | None = None,
        *,
        dtype: Dtype | None = None,
        implementation: Implementation = None,
    ) -> None:
        self.packed = Int4Param(weight.packed)
        self.scales = Int4Param(weight.scales)
        self.zeros = Int4Param(weight.zeros)
        self.order = nnx.data(None if weight.order is None else Int4Param(weight.order))
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.group_size = weight.group_size
        self.dtype, self.implementation = dtype, implementation

    @classmethod
    def from_dense(
        cls,
        linear: nnx.Linear,
        *,
        group_size: int = 128,
        symmetric: bool = False,
        dtype: Dtype | None = None,
        implementation: Implementation = None,
    ) -> Int4Linear:
        """Rounds a layer to four bits. Stacked ones ([layers, IC, OC] kernels) stay stacked.

        Args:
          linear: the layer, which is not changed.
          group_size: input channels that share a scale and a zero point; -1 for all.
          symmetric: whether all zero points are 8, instead of fitting their groups.
          dtype: of the product and of the scales. None for the layer's own; if it has none, for
            that of the inputs and that of the kernel.
          implementation: as for ``int4_matmul``.
        """
        dtype = linear.dtype if dtype is None else dtype
        weight = int4_layers.quantize_kernel(
            linear.kernel[...], dtype=dtype, group_size=group_size, symmetric=symmetric
        )
        bias = None if linear.bias is None else linear.bias[...]
        return cls(weight, bias, dtype=dtype, implementation=implementation)

    @property
    def weight(self) -> Int4Weight:
        """The layer's arrays as an ``Int4Weight`` of shape (IC, OC)."""
        return Int4Weight(
            packed=self.packed.get_value(),
            scales=self.scales.get_value(),
            zeros=self.zeros.get_value(),
            order=None if self.order is None else self.order.get_value(),
            in_features=self.in_features,
            out_features=self.out_features,
            group_size=self.group_size,
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., IC] to [..., OC]."""
        return int4_layers.multiply(
            inputs,
            self.weight,
            None if self.bias is None else self.bias[...],
            dtype=self.dtype,
            implementation=self.implementation,
        )


def quantize_model(
    model: Any,
    *,
    where: Callable[[Path, nnx.Linear], bool] | None = None,
    group_size: int = 128,
    symmetric: bool = False,
    dtype: Dtype | None = None,
    implementation: Implementation = None,
) -> Any:
    """Swaps the ``nnx.Linear`` layers of a model for ``Int4Linear``, in place.

    Only layers of that very class are swapped: ``LinearGeneral``, ``Einsum``, subclasses and
    embeddings stay. A layer that the model uses in several places stays one layer.

    Args:
      model: an ``nnx.Module``.
      where: ``where(path, layer)`` says which layers to swap, such as
        ``lambda path, layer: "lm_head" not in path``; None for all of them.
      group_size: as for ``Int4Linear.from_dense``.
      symmetric: likewise.
      dtype: likewise.
      implementation: as for ``int4_matmul``.

    Returns:
      The model; if it is itself a layer that is swapped, the new layer.

    Raises:
      ValueError: for a ``group_size`` that is neither -1 nor a multiple of 32, and for a layer
        whose kernel is neither float16, bfloat16 nor float32. No layer is swapped then.

    Example::

      >>> from flax import nnx
      >>> from jax_baracuda.nnx import quantize_model
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu)
      >>> type(quantize_model(model, group_size=64).layers[0]).__name__
      'Int4Linear'
    """
    modules = dict(nnx.iter_modules(model))
    swapped: dict[int, Int4Linear] = {
        id(layer): Int4Linear.from_dense(
            layer,
            group_size=group_size,
            symmetric=symmetric,
            dtype=dtype,
            implementation=implementation,
        )
        for path, layer in modules.items()
        if type(layer) is nnx.Linear and (where is None or where(path, layer))
    }

    def swap(value: Any) -> Any:
        return swapped.get(id(value), value)

    for module in modules.values():
        for name, value in list(vars(module).items()):
            if id(value) in swapped:
                setattr(module, name, swap(value))
            elif isinstance(value, (tuple, list, dict)):
                leaves, tree = jax.tree.flatten(value, lambda v: isinstance(v, nnx.Module))
                if any(id(leaf) in swapped for leaf in leaves):
                    new = jax.tree.unflatten(tree, [swap(leaf) for leaf in leaves])
                    setattr(module, name, nnx.data(new))
    return swap(model)
