"""The inverse frequencies of rotary position embeddings, on the host in float64.

Pair i of R / 2 turns by position * inv_freq[i], where inv_freq[i] = theta^(-2 i / R) (J. Su et al.,
"RoFormer", 2021, arXiv:2104.09864), changed by one of the scalings that stretch a model's context:

- "linear": every frequency divided by a factor (S. Chen et al., "Extending Context Window of Large
  Language Models via Positional Interpolation", 2023, arXiv:2306.15595);
- "llama3": slow pairs divided, fast ones kept, a blend between them (A. Dubey et al., "The Llama 3
  Herd of Models", 2024, arXiv:2407.21783, and the models' published configurations);
- "yarn": the same idea with a ramp over the pairs' indices, and a factor on the rotated vectors
  (B. Peng et al., "YaRN", 2023, arXiv:2309.00071).

Names and defaults are those of ``rope_scaling`` in Hugging Face's model configurations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_baracuda._src import validation

Frequencies = tuple[np.ndarray, float]  # float64 [R / 2], factor on the cosines and sines


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A rotary position embedding, checked.

    Attributes:
      inv_freq: float32 [rotary_dim / 2], radians a position.
      interleaved: pairs are neighbours (2 i, 2 i + 1) instead of halves (i, i + rotary_dim / 2).
      attention_factor: factor on the rotated columns.
    """

    inv_freq: np.ndarray
    interleaved: bool
    attention_factor: float


def rotation(
    head_dim: int,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    scaling: Mapping[str, Any] | None = None,
    rotary_dim: int | None = None,
) -> Rotation:
    """Checks the options of a rotation of vectors of ``head_dim``; raises ValueError by name."""
    base = validation.number("theta", theta, "a finite Python number > 1")
    if base <= 1:
        raise ValueError(f"theta is {theta!r}; it must be a finite Python number > 1.")
    if not isinstance(interleaved, (bool, np.bool_)):
        raise ValueError(f"interleaved is {interleaved!r}; it must be True or False.")
    width = _check_rotary_dim(rotary_dim, head_dim)
    inv_freq, attention_factor = _frequencies(width, base, scaling)
    return Rotation(inv_freq.astype(np.float32), bool(interleaved), attention_factor)


def _check_rotary_dim(rotary_dim: int | None, head_dim: int) -> int:
    if rotary_dim is None:
        if head_dim % 2:
            raise ValueError(
                f"rotary_dim is None and the head dimension {head_dim}, which is odd; give an even "
                "rotary_dim."
            )
        return head_dim
    width = validation.index(rotary_dim)
    if width is None or width < 2 or width % 2 or width > head_dim:
        raise ValueError(
            f"rotary_dim is {rotary_dim!r}; supported are None (all columns) and even ints from 2 "
            f"to the head dimension, {head_dim}."
        )
    return width


def _frequencies(width: int, theta: float, scaling: Mapping[str, Any] | None) -> Frequencies:
    if scaling is None:
        return _unscaled(width, theta), 1.0
    if not isinstance(scaling, Mapping):
        raise ValueError(f"scaling is {scaling!r}; it must be None or a mapping with a rope_type.")
    fields = dict(scaling)
    # Configurations written before transformers 4.43 say "type".
    kinds = [fields.pop(key) for key in ("rope_type", "type") if key in fields]
    kind = kinds[0] if kinds and kinds.count(kinds[0]) == len(kinds) else None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise NotImplementedError(
            f"scaling has the rope_type {kind!r} ({dict(scaling)}); supported are "
            f"{', '.join(map(repr, _SCALINGS))}."
        )
    return _SCALINGS[kind](width, theta, _Fields(kind, fields))


class _Fields:
    """The fields of a scaling; each is read once, and none may be left over."""

    def __init__(self, kind: str, given: dict[str, Any]) -> None:
        self._kind, self._given = kind, given

    def required(self, name: str) -> float:
        """A number > 0."""
        if self._given.get(name) is None:
            raise ValueError(f"scaling of rope_type {self._kind!r} needs {name!r}.")
        return self._positive(name, self._given.pop(name))

    def optional(self, name: str, *, or_zero: bool = False) -> float | None:
        """A number > 0, or None, for which 0 may stand."""
        value = self._given.pop(name, None)
        if value is None or (or_zero and value == 0):
            return None
        return self._positive(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._given.pop(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"scaling[{name!r}] is {value!r}; it must be True or False.")
        return value

    def done(self) -> None:
        """Raises if a field was not read: a setting that is ignored is a wrong model."""
        if self._given:
            raise ValueError(
                f"scaling of rope_type {self._kind!r} has the unknown fields "
                f"{', '.join(map(repr, self._given))}."
            )

    def _positive(self, name: str, value: Any) -> float:
        number = validation.number(f"scaling[{name!r}]", value, "a finite Python number > 0")
        if number <= 0:
            raise ValueError(f"scaling[{name!r}] is {value!r}; it must be > 0.")
        return number


def _unscaled(width: int, theta: float) -> np.ndarray:
    exponents: np.ndarray = np.arange(0, width, 2, dtype=np.float64) / width
    return theta**-exponents


def _default(width: int, theta: float, fields: _Fields) -> Frequencies:
    fields.done()
    return _unscaled(width, theta), 1.0


def _linear(width: int, theta: float, fields: _Fields) -> Frequencies:
    factor = fields.required("factor")
    fields.done()
    return _unscaled(width, theta) / factor, 1.0


def _llama3(width: int, theta: float, fields: _Fields) -> Frequencies:
    factor = fields.required("factor")
    low, high = fields.required("low_freq_factor"), fields.required("high_freq_factor")
    context = fields.required("original_max_position_embeddings")
    fields.done()
    if high <= low:
        raise ValueError(
            f"scaling['high_freq_factor'] is {high:g}; it must be > low_freq_factor, {low:g}."
        )
    inv_freq = _unscaled(width, theta)
    turns = context * inv_freq / (2 * math.pi)  # in the context of the training
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 0: a slow pair, 1: a fast one
    return (1 - kept) * inv_freq / factor + kept * inv_freq, 1.0


def _yarn(width: int, theta: float, fields: _Fields) -> Frequencies:
    factor = fields.required("factor")
    context = fields.required("original_max_position_embeddings")
    beta_fast = fields.optional("beta_fast", or_zero=True) or 32.0
    beta_slow = fields.optional("beta_slow", or_zero=True) or 1.0
    truncate = fields.flag("truncate", True)
    attention_factor = fields.optional("attention_factor")
    mscale = fields.optional("mscale", or_zero=True)
    mscale_all_dim = fields.optional("mscale_all_dim", or_zero=True)
    fields.done()

    def pair_of(turns: float) -> float:
        """The (fractional) pair that makes so many turns in the context of the training."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(beta_fast), pair_of(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    inv_freq = _unscaled(width, theta)
    slow = np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if attention_factor is None:
        attention_factor = temperature(1.0)
        if mscale is not None and mscale_all_dim is not None:
            attention_factor = temperature(mscale) / temperature(mscale_all_dim)
    return slow * inv_freq / factor + (1 - slow) * inv_freq, attention_factor


_SCALINGS: dict[str, Callable[[int, float, _Fields], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
