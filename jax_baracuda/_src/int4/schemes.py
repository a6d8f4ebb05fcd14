"""What a Hugging Face ``quantization_config`` says, and the layers of each of its methods.

Sources: the configurations that AutoAWQ, AutoGPTQ, GPTQModel and compressed-tensors write, as
documented for Hugging Face Transformers (https://huggingface.co/docs/transformers/quantization).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from jax_baracuda._src.int4.weight import Int4Weight

Tensors = Mapping[str, np.ndarray]
BITS = 4

_NIBBLES_OF_7, _NIBBLES_OF_8 = 0x77777777, 0x88888888


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a checkpoint keeps its quantised layers.

    Attributes:
      marker: the tensor that only a quantised layer has, such as "qweight".
      required: the other tensors that it must have.
      optional: those that it may have.
      convert: all of them, by name, to the weight.
    """

    marker: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Tensors], Int4Weight]

    @property
    def parts(self) -> tuple[str, ...]:
        """Every tensor that a quantised layer may have in the place of its weight."""
        return (self.marker, *self.required, *self.optional)


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """The scheme of a quantization_config; NotImplementedError names what is unsupported in it."""
    method = config.get("quant_method")
    if method not in _METHODS:
        _refuse("quant_method", method, "'awq', 'gptq' and 'compressed-tensors'")
    return _METHODS[method](config)


def _awq(config: Mapping[str, Any]) -> Scheme:
    _expect_bits("bits", config.get("bits"))
    version = str(config.get("version", "gemm")).lower()
    if version not in ("gemm", "gemv"):
        _refuse("version", config.get("version"), "'gemm' and 'gemv'")
    if config.get("backend") not in (None, "autoawq"):
        _refuse("backend", config["backend"], "'autoawq'")
    if not config.get("zero_point", True):
        _refuse("zero_point", False, "true")
    read = Int4Weight.from_awq_gemm if version == "gemm" else Int4Weight.from_awq_gemv
    group_size = config.get("group_size", 128)

    def convert(tensors: Tensors) -> Int4Weight:
        return read(**tensors, group_size=group_size)

    return Scheme("qweight", ("qzeros", "scales"), (), convert)


def _gptq(config: Mapping[str, Any]) -> Scheme:
    _expect_bits("bits", config.get("bits"))
    form = config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        _refuse("checkpoint_format", form, "'gptq' and 'gptq_v2'")
    overrides = [key for key in config.get("dynamic") or {} if not key.startswith("-:")]
    if overrides:
        _refuse("dynamic", overrides, "modules that are left out ('-:...')")
    convert = functools.partial(
        _gptq_weight,
        group_size=config.get("group_size", 128),
        zero_offset=1 if form == "gptq" else 0,
        symmetric=bool(config.get("sym", False)),
    )
    return Scheme("qweight", ("qzeros", "scales"), ("g_idx",), convert)


def _gptq_weight(
    tensors: Tensors, *, group_size: int, zero_offset: int, symmetric: bool
) -> Int4Weight:
    """Some checkpoints have the other version's zero points; a symmetric one shows it."""
    words = tensors["qzeros"].view(np.uint32)
    if symmetric and (words == _NIBBLES_OF_7).all():
        zero_offset = 1
    elif symmetric and (words == _NIBBLES_OF_8).all():
        zero_offset = 0
    return Int4Weight.from_gptq(**tensors, group_size=group_size, zero_offset=zero_offset)


def _compressed_tensors(config: Mapping[str, Any]) -> Scheme:
    if config.get("format") != "pack-quantized":
        _refuse("format", config.get("format"), "'pack-quantized'")
    groups = config.get("config_groups") or {}
    if not groups:
        _refuse("config_groups", groups, "one group of layers, or several that are alike")
    weights = [_compressed_group(name, group) for name, group in groups.items()]
    if any(group != weights[0] for group in weights):
        _refuse("config_groups", sorted(groups), "groups with equal weights")
    group_size, symmetric = weights[0]

    def convert(tensors: Tensors) -> Int4Weight:
        return _compressed_weight(tensors, group_size=group_size, symmetric=symmetric)

    return Scheme(
        "weight_packed",
        ("weight_scale",),
        ("weight_zero_point", "weight_g_idx", "weight_shape"),
        convert,
    )


def _compressed_group(name: str, group: Mapping[str, Any]) -> tuple[int, bool]:
    """The group size, -1 for one a channel, and whether it is symmetric."""
    where = f"config_groups.{name}"
    for what in ("input_activations", "output_activations"):
        if group.get(what):
            _refuse(f"{where}.{what}", group[what], "activations that are not quantised (null)")
    if group.get("format", "pack-quantized") not in (None, "pack-quantized"):
        _refuse(f"{where}.format", group["format"], "'pack-quantized'")
    weights = group.get("weights") or {}
    _expect_bits(f"{where}.weights.num_bits", weights.get("num_bits"))
    if weights.get("type", "int") != "int":
        _refuse(f"{where}.weights.type", weights["type"], "'int'")
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        _refuse(f"{where}.weights.strategy", strategy, "'group' and 'channel'")
    return weights["group_size"] if strategy == "group" else -1, bool(weights.get("symmetric"))


def _compressed_weight(tensors: Tensors, *, group_size: int, symmetric: bool) -> Int4Weight:
    zeros = None if symmetric else tensors.get("weight_zero_point")
    if zeros is None and not symmetric:
        raise ValueError("it has no weight_zero_point, and its config says symmetric: false")
    g_idx = tensors.get("weight_g_idx")
    shape = tensors.get("weight_shape")
    if g_idx is not None and (g_idx < 0).any():  # -1 throughout: not used
        g_idx = None
    return Int4Weight.from_compressed_tensors(
        tensors["weight_packed"],
        tensors["weight_scale"],
        zeros,
        g_idx=g_idx,
        group_size=group_size,
        in_features=None if shape is None else int(shape[1]),
    )


_METHODS: dict[Any, Callable[[Mapping[str, Any]], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
}


def _expect_bits(name: str, bits: Any) -> None:
    if bits != BITS:
        _refuse(name, bits, str(BITS))


def _refuse(name: str, given: Any, supported: str) -> NoReturn:
    raise NotImplementedError(
        f"quantization_config has {name} = {given!r}; supported: {supported}."
    )
