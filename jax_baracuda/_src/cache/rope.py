"""apply_rope, the public function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import compat, convert, validation
from jax_baracuda._src.cache import frequencies, partition, primitive, shapes


def apply_rope(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    scaling: Mapping[str, Any] | None = None,
    rotary_dim: int | None = None,
    implementation: Literal["cuda", "reference"] | None = None,
) -> jax.Array:
    r"""Rotary position embedding: turns pairs of columns by angles that grow with the position.

    Pair i of R / 2, with R = ``rotary_dim``, turns by ``positions * theta ** (-2 i / R)`` radians:

    .. math:: (a, b) \mapsto (a \cos\phi - b \sin\phi, \; b \cos\phi + a \sin\phi)

    Angles, cosines, sines and products are in float32, whatever the dtype of ``x``, and each angle
    is reduced exactly: positions may be in the millions. It is one kernel launch.

    Args:
      x: [..., H, D], float16, bfloat16 or float32. H heads of one token share its position.
      positions: integers that broadcast to the leading dimensions of ``x``, [...]: of each token.
        Negative ones turn the other way. They are converted to float32, exact up to 2**24.
      theta: the base of the frequencies, a Python number > 1.
      interleaved: False pairs column i with i + R/2 (GPT-NeoX, Llama in Hugging Face's format);
        True pairs column 2 i with 2 i + 1 (GPT-J, Llama in Meta's format).
      scaling: None, or a mapping as ``rope_scaling`` in a Hugging Face configuration. By
        ``rope_type``:

        - "linear": ``factor``;
        - "llama3": ``factor``, ``low_freq_factor``, ``high_freq_factor``,
          ``original_max_position_embeddings``;
        - "yarn": ``factor``, ``original_max_position_embeddings``; and, if they are not to have
          their defaults, ``beta_fast`` (32), ``beta_slow`` (1), ``attention_factor`` (0.1
          log(factor) + 1), ``mscale``, ``mscale_all_dim``, ``truncate`` (True). The attention
          factor multiplies the rotated columns;
        - "default": no scaling.
      rotary_dim: R, an even int: columns from R on pass through unchanged. None: D.
      implementation: None runs the CUDA kernel on a GPU and plain jax.numpy elsewhere; "cuda"
        raises where it cannot run the kernel; "reference" is always plain jax.numpy.

    Returns:
      An array like ``x``.

    Raises:
      ValueError: at trace time, for an argument whose shape, dtype or value does not fit; it names
        the argument, what was given and what is supported.
      NotImplementedError: at trace time, for another dtype or ``rope_type``; when compiled for
        another platform with ``implementation="cuda"``; on a GPU, in ``shard_map`` over a part of
        the mesh.
      RuntimeError: when compiled for CUDA in a process with a CUDA device and without the kernel.

    Transformations: differentiable in ``x``, any number of times and in both modes (the gradient
    is the rotation by the negative angle). ``vmap`` of any mix. Under ``jit`` every dimension but D
    may be sharded.

    Example::

      >>> import jax.numpy as jnp
      >>> from jax_baracuda import apply_rope
      >>> query = jnp.ones((2, 16, 32, 128), jnp.bfloat16)  # [B, S, H, D]
      >>> out = apply_rope(query, jnp.arange(16), theta=500000.0)
      >>> out.shape, out.dtype
      ((2, 16, 32, 128), dtype(bfloat16))

    Sources: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
    arXiv:2104.09864; linear, S. Chen et al., "Extending Context Window of Large Language Models via
    Positional Interpolation", 2023, arXiv:2306.15595; llama3, A. Dubey et al., "The Llama 3 Herd of
    Models", 2024, arXiv:2407.21783; YaRN, B. Peng et al., 2023, arXiv:2309.00071.
    """
    validation.check_implementation(implementation)
    x, positions = convert.array("x", x), convert.array("positions", positions)
    shapes.check_rope_operands(x, positions)
    rotation = frequencies.rotation(
        x.shape[-1],
        theta=theta,
        interleaved=interleaved,
        scaling=scaling,
        rotary_dim=rotary_dim,
    )
    # A token by itself becomes a sequence of one: the sharding rule takes scalars for missing.
    alone = x.ndim == 2
    if alone:
        x = x[None]
    positions = jnp.broadcast_to(convert.int32(positions), x.shape[:-2])
    operands = compat.match_varying(x, positions, jnp.asarray(rotation.inv_freq))
    options = shapes.rotation_options(rotation)
    call: Callable[..., Any] = functools.partial(primitive.OPS["apply_rope"].reference, **options)
    if implementation != "reference":
        insist = implementation == "cuda"
        call = functools.partial(primitive.bind, "apply_rope", **options, insist=insist)
    (out,) = partition.in_auto_mode("apply_rope", call, operands)
    result: jax.Array = out[0] if alone else out
    return result
