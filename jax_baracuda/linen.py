"""Flax Linen: an ``attention_fn`` for ``MultiHeadDotProductAttention``, and four-bit dense layers.

Example::

  >>> from flax import linen
  >>> from jax_baracuda.linen import dot_product_attention
  >>> layer = linen.MultiHeadDotProductAttention(num_heads=8, attention_fn=dot_product_attention)

``Int4Dense`` is ``flax.linen.Dense`` on an ``Int4Weight``; ``quantize_params`` makes its variables
of those of ``Dense`` layers, and ``quantize_model`` swaps the layers of a model that has them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import default_kernel_init
from flax.typing import Dtype, Initializer, PrecisionLike

from jax_baracuda._src.attention import flax_layers
from jax_baracuda._src.attention.flax_layers import Implementation
from jax_baracuda._src.int4 import flax_layers as int4_layers
from jax_baracuda._src.int4.weight import Int4Weight

__all__ = [
    "Int4Dense",
    "Int4Model",
    "dot_product_attention",
    "quantize_model",
    "quantize_params",
]

PARAMS, INT4 = "params", "int4"  # collections; the second is of the weights
Where = int4_layers.Where


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
      >>> from jax_baracuda.linen import dot_product_attention
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


class Int4Dense(linen.Module):
    """``flax.linen.Dense`` on a weight of four-bit numbers, for inference and for LoRA.

    The weight, an ``Int4Weight``, is the variable "kernel" of the collection "int4", so that
    optimizers of "params" leave it alone; the bias is a parameter. The input has a gradient, the
    weight has none. ``init`` rounds a random kernel; ``quantize_params`` and ``load_checkpoint``
    give others.

    Attributes:
      features: OC.
      use_bias: whether there is a bias.
      dtype: of the product: float16, bfloat16 or float32. None for that of the inputs.
      param_dtype: of the scales and the bias that ``init`` makes.
      kernel_init: makes the matrix that ``init`` rounds to four bits.
      bias_init: makes the bias.
      group_size: for ``init``: input channels that share a scale and a zero point; -1 for all.
      symmetric: for ``init``: whether all zero points are 8.
      implementation: as for ``int4_matmul``.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> from jax_baracuda.linen import Int4Dense, quantize_params
      >>> x = jnp.ones((2, 256), jnp.bfloat16)
      >>> params = linen.Dense(512, param_dtype=jnp.bfloat16).init(jax.random.key(0), x)["params"]
      >>> variables = quantize_params(params)
      >>> Int4Dense(512).apply(variables, x).shape, variables["int4"]["kernel"].shape
      ((2, 512), (256, 512))
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = linen.initializers.zeros_init()
    group_size: int = 128
    symmetric: bool = False
    implementation: Implementation = None

    @classmethod
    def from_dense(
        cls,
        dense: linen.Dense,
        params: Mapping[str, Any],
        *,
        group_size: int = 128,
        symmetric: bool = False,
        dtype: Dtype | None = None,
        implementation: Implementation = None,
    ) -> tuple[Int4Dense, dict[str, Any]]:
        """Rounds a layer to four bits.

        Args:
          dense: the layer.
          params: its parameters, {"kernel": [IC, OC], "bias": [OC]}; no bias if it has none.
          group_size: input channels that share a scale and a zero point; -1 for all.
          symmetric: whether all zero points are 8, instead of fitting their groups.
          dtype: of the product and of the scales. None for the layer's own; if it has none, for
            that of the inputs and that of the kernel.
          implementation: as for ``int4_matmul``.

        Returns:
          ``(layer, variables)``, for ``layer.apply(variables, inputs)``.
        """
        dtype = dense.dtype if dtype is None else dtype
        layer = cls(
            features=dense.features,
            use_bias=dense.use_bias,
            dtype=dtype,
            param_dtype=dense.param_dtype,
            kernel_init=dense.kernel_init,
            bias_init=dense.bias_init,
            implementation=implementation,
            group_size=group_size,
            symmetric=symmetric,
            name=dense.name,
        )
        return layer, quantize_params(
            params, group_size=group_size, symmetric=symmetric, dtype=dtype
        )

    @linen.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., IC] to [..., OC]."""

        def make() -> Int4Weight:
            shape = (inputs.shape[-1], self.features)
            kernel = self.kernel_init(self.make_rng(PARAMS), shape, self.param_dtype)
            return int4_layers.quantize_kernel(
                kernel, dtype=None, group_size=self.group_size, symmetric=self.symmetric
            )

        weight = self.variable(INT4, "kernel", make).value
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return int4_layers.multiply(
            inputs, weight, bias, dtype=self.dtype, implementation=self.implementation
        )


def quantize_params(
    params: Mapping[str, Any],
    *,
    where: Where = None,
    group_size: int = 128,
    symmetric: bool = False,
    dtype: Dtype | None = None,
) -> dict[str, Any]:
    """The variables of a model with ``Int4Dense`` layers, of the parameters of one with ``Dense``.

    Every "kernel" [IC, OC] of ``params`` becomes an ``Int4Weight`` in the collection "int4". Layers
    that Flax named, "Dense_0", are renamed to "Int4Dense_0".

    Args:
      params: nested dictionaries of arrays.
      where: ``where(path, kernel)`` says which kernels to round, such as
        ``lambda path, kernel: "head" not in path``. None for all that are matrices; for the kernels
        [layers, IC, OC] of ``linen.scan``, give one that takes them.
      group_size: input channels that share a scale and a zero point; -1 for all.
      symmetric: whether all zero points are 8, instead of fitting their groups.
      dtype: of the scales, best that of the activations; None for that of the kernel.

    Returns:
      {"params": what is left, "int4": weights}, to be given to ``apply``.

    Raises:
      ValueError: for a ``group_size`` that is neither -1 nor a multiple of 32, and for a kernel
        that is neither float16, bfloat16 nor float32.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda.linen import quantize_params
      >>> params = {"Dense_0": {"kernel": jnp.ones((256, 512)), "bias": jnp.zeros(512)}}
      >>> variables = quantize_params(params)
      >>> variables["int4"]["Int4Dense_0"]["kernel"].shape, list(variables["params"]["Int4Dense_0"])
      ((256, 512), ['bias'])
    """

    quantize = functools.partial(
        int4_layers.quantize_kernel, dtype=dtype, group_size=group_size, symmetric=symmetric
    )
    kept, rounded = int4_layers.split_params(params, where, quantize)
    return {PARAMS: int4_layers.rename(kept, rounded), INT4: int4_layers.rename(rounded, rounded)}


@dataclasses.dataclass(frozen=True, eq=False)
class Int4Model:
    """A Linen model whose ``Dense`` layers are run as ``Int4Dense``; made by ``quantize_model``.

    Attributes:
      model: the model as it was. The layers keep their names, and whatever calls them (``scan``,
        ``remat``, ``setup``, other methods) stays as it is.
      dtype: of the products. None for that of each layer; if it has none, of its inputs.
      implementation: as for ``int4_matmul``.
    """

    model: linen.Module
    dtype: Dtype | None = None
    implementation: Implementation = None

    def apply(self, variables: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """``model.apply`` on what ``quantize_model`` gave, and other collections if there are."""
        others = {name: tree for name, tree in variables.items() if name != INT4}
        # In the place of the kernels: transformations carry them along with the parameters.
        params = int4_layers.merge_params(variables.get(PARAMS, {}), variables.get(INT4, {}))
        with linen.intercept_methods(self._swap):
            return self.model.apply({**others, PARAMS: params}, *args, **options)

    def _swap(self, call: Any, args: Any, options: Any, context: Any) -> Any:
        """Runs a layer whose kernel has four bits, and leaves all other calls alone."""
        layer = context.module
        if context.method_name != "__call__" or not layer.has_variable(PARAMS, "kernel"):
            return call(*args, **options)
        weight = layer.get_variable(PARAMS, "kernel")
        if not isinstance(weight, Int4Weight):
            return call(*args, **options)
        if type(layer) is not linen.Dense:
            raise NotImplementedError(
                f"{'/'.join(layer.path)} is a {type(layer).__name__}, whose kernel was rounded; "
                "supported are flax.linen.Dense layers. Leave it out by where=."
            )

        return int4_layers.multiply(
            args[0] if args else options["inputs"],
            weight,
            layer.get_variable(PARAMS, "bias") if layer.use_bias else None,
            dtype=layer.dtype if self.dtype is None else self.dtype,
            implementation=self.implementation,
        )


def quantize_model(
    model: linen.Module,
    params: Mapping[str, Any],
    *,
    where: Where = None,
    group_size: int = 128,
    symmetric: bool = False,
    dtype: Dtype | None = None,
    implementation: Implementation = None,
) -> tuple[Int4Model, dict[str, Any]]:
    """Swaps the ``linen.Dense`` layers of a model for four-bit ones, for inference.

    The model's source stays as it is. A Linen model makes its layers anew in every call; those
    whose kernels are rounded are run as ``Int4Dense`` would be.

    Args:
      model: the model.
      params: its parameters.
      where: ``where(path, kernel)`` says which kernels to round, as for ``quantize_params``; they
        must be those of ``linen.Dense`` layers. None for all that are matrices.
      group_size: input channels that share a scale and a zero point; -1 for all.
      symmetric: whether all zero points are 8, instead of fitting their groups.
      dtype: of the scales and of the products; None for that of the kernel and of the layer.
      implementation: as for ``int4_matmul``.

    Returns:
      ``(model, variables)``, for ``model.apply(variables, ...)``, with the options of
      ``linen.Module.apply``. The variables are {"params": what is left, "int4": weights}, under the
      names that they had.

    Raises:
      ValueError: as ``quantize_params`` does.
      NotImplementedError: in ``apply``, for a rounded kernel of another kind of layer.

    Example::

      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> from jax_baracuda.linen import quantize_model
      >>> x = jnp.ones((2, 64))
      >>> dense = linen.Sequential([linen.Dense(128), linen.relu, linen.Dense(8)])
      >>> params = dense.init(jax.random.key(0), x)["params"]
      >>> model, variables = quantize_model(dense, params, group_size=64)
      >>> model.apply(variables, x).shape, variables["int4"]["layers_0"]["kernel"].shape
      ((2, 8), (64, 128))
    """
    quantize = functools.partial(
        int4_layers.quantize_kernel, dtype=dtype, group_size=group_size, symmetric=symmetric
    )
    kept, rounded = int4_layers.split_params(params, where, quantize)
    return Int4Model(model, dtype, implementation), {PARAMS: kept, INT4: rounded}


_ARRAYS = ("packed", "scales", "zeros", "order")


def _to_state(weight: Int4Weight) -> dict[str, Any]:
    return {name: getattr(weight, name) for name in _ARRAYS if getattr(weight, name) is not None}


def _from_state(weight: Int4Weight, state: dict[str, Any]) -> Int4Weight:
    return dataclasses.replace(weight, **state)


# For flax.serialization.to_bytes and from_bytes.
flax.serialization.register_serialization_state(Int4Weight, _to_state, _from_state)
