"""Checkpoints: ``config.json`` and ``model.safetensors``, laid out as a Hugging Face Llama.

Ours are readable there and theirs here, those with four-bit weights included. A training run adds
``training.json`` (its settings) and ``training.safetensors`` (optimizer and step), from which it
resumes exactly.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from safetensors.flax import load_file, save_file

from jax_baracuda.nnx import Int4Linear
from jax_baracuda.quant import Int4Weight, load_checkpoint

from .awq import awq_settings, awq_tensors
from .config import ModelConfig, TrainConfig
from .data import END_OF_TEXT
from .model import Llama
from .training import TrainState, create_train_state

Tree = TypeVar("Tree")
Tensors = MutableMapping[str, Any]  # arrays and Int4Weights, by Hugging Face's names


def save_model(folder: Path, model: Llama) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(model.config)
    settings["torch_dtype"] = settings.pop("dtype")
    settings |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    settings |= {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
    layers = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is(Int4Linear))
    rounded = [layer.weight for _, layer in layers if isinstance(layer, Int4Linear)]
    if rounded:
        settings["quantization_config"] = awq_settings(rounded)
    tensors: dict[str, Any] = {}
    for path, leaf in layers:
        name, transposed = _hugging_face_name(path)
        if isinstance(leaf, Int4Linear):
            tensors |= _awq_layers(name, leaf, settings["quantization_config"]["group_size"])
            continue
        value = leaf.swapaxes(-1, -2) if transposed else leaf
        if "{layer}" in name:
            tensors |= {name.format(layer=i): rows for i, rows in enumerate(value)}
        else:
            tensors[name] = value
    _write_json(folder / "config.json", settings)
    _write_tensors(folder / "model.safetensors", tensors)


def load_model(folder: Path, dtype: str | None = None) -> Llama:
    """Reads a model, for arithmetic in ``dtype`` or else as it was saved.

    Raises FileNotFoundError or ValueError that says what is wrong with it.
    """
    settings = json.loads((folder / "config.json").read_text())
    config = _model_config(folder, settings)
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    if "quantization_config" in settings:
        return build_model(config, load_checkpoint(folder, dtype=config.dtype), folder)
    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return build_model(config, tensors, folder)


def build_model(config: ModelConfig, tensors: Tensors, folder: Path) -> Llama:
    """The model of the ``tensors``, which are taken out of them; ``folder`` is for the errors.

    Projections whose weights have four bits become ``Int4Linear`` layers, with a bias if there is
    one.
    """

    def swap(path: Any, part: Any) -> Any:
        linear = isinstance(part, nnx.Linear)
        name, _ = _hugging_face_name(path)
        return (linear and _int4_layer(name, part, config, tensors, folder)) or part

    model: Llama = jax.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
    model = jax.tree_util.tree_map_with_path(swap, model, is_leaf=_is(nnx.Linear))

    def read(path: Any) -> Array:
        name, transposed = _hugging_face_name(path)
        if "{layer}" in name:
            layers = range(config.num_hidden_layers)
            value = jnp.stack([_take(tensors, name.format(layer=i), folder) for i in layers])
        else:
            value = _take(tensors, name, folder)
            if isinstance(value, Int4Weight):  # the head, which is [V, E] here
                value = value.dequantize(config.dtype).T
        return value.swapaxes(-1, -2) if transposed else value

    return _fill(model, read, folder)


def save_training(folder: Path, state: TrainState, config: TrainConfig) -> None:
    """Writes everything that ``load_training`` needs, the model included."""
    save_model(folder, state.model)
    _write_json(folder / "training.json", dataclasses.asdict(config))
    rest = jax.tree_util.tree_leaves_with_path((state.optimizer, state.step))
    tensors = {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in rest}
    _write_tensors(folder / "training.safetensors", tensors)


def load_training(folder: Path) -> tuple[TrainState, TrainConfig]:
    """Reads a run as ``save_training`` left it."""
    model = load_model(folder)
    config = load_settings(folder)
    tensors = load_file(folder / "training.safetensors")
    fresh = jax.eval_shape(lambda: create_train_state(model, config))
    optimizer, step = _fill(
        (fresh.optimizer, fresh.step),
        lambda path: _take(tensors, jax.tree_util.keystr(path), folder),
        folder,
    )
    return TrainState(model, optimizer, step), config


def load_settings(folder: Path) -> TrainConfig:
    """The settings of the run in ``folder``."""
    return TrainConfig(**json.loads((folder / "training.json").read_text()))


def model_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says of the fields of ``ModelConfig``."""
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    sizes = {name: value for name, value in settings.items() if name in known}
    rope = settings.get("rope_parameters") or {}
    if "rope_theta" in rope:
        sizes["rope_theta"] = rope["rope_theta"]
    sizes["dtype"] = settings.get("torch_dtype") or settings.get("dtype") or "float32"
    if not sizes.get("head_dim"):
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda part: isinstance(part, kind)


def _awq_layers(name: str, layer: Int4Linear, group_size: int) -> dict[str, Any]:
    """The tensors of a stacked layer."""
    tensors: dict[str, Any] = {}
    for i in range(layer.packed.shape[0]):
        weight = jax.tree.map(lambda leaf, i=i: leaf[i], layer.weight)
        for part, array in awq_tensors(weight, group_size).items():
            tensors[f"{name.format(layer=i)}.{part}"] = jnp.asarray(array)
        if layer.bias is not None:
            tensors[f"{name.format(layer=i)}.bias"] = layer.bias[i]
    return tensors


def _int4_layer(
    name: str, linear: nnx.Linear, config: ModelConfig, tensors: Tensors, folder: Path
) -> Int4Linear | None:
    """The stacked layer that replaces ``linear``; None where its weights are not of four bits."""
    names = [name.format(layer=i) for i in range(config.num_hidden_layers)]
    found = [isinstance(tensors.get(f"{one}.weight"), Int4Weight) for one in names]
    if not any(found):
        return None
    if not all(found):
        left = names[found.index(False)]
        raise NotImplementedError(
            f"{folder}: {left} has no four-bit weight and other layers have; supported are layers "
            "that are alike, so that they can be scanned over"
        )
    weights: list[Int4Weight] = [tensors.pop(f"{one}.weight") for one in names]
    expected = (linear.in_features, linear.out_features)
    for one, weight in zip(names, weights, strict=True):
        if weight.shape != expected:
            raise ValueError(f"{folder}: {one} is {weight.shape}, the model's is {expected}")
    bias = None
    if f"{names[0]}.bias" in tensors:
        bias = jnp.stack([_take(tensors, f"{one}.bias", folder) for one in names])
    return Int4Linear(_stack(weights), bias, dtype=jnp.dtype(config.dtype))


def _stack(weights: Sequence[Int4Weight]) -> Int4Weight:
    """[layers, ...] in every array. Where some have an order (GPTQ's act-order), all have one."""
    if any(weight.order is not None for weight in weights):
        plain = jnp.arange(weights[0].in_features, dtype=jnp.int32)
        weights = [
            dataclasses.replace(weight, order=plain if weight.order is None else weight.order)
            for weight in weights
        ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)


def _hugging_face_name(path: Any) -> tuple[str, bool]:
    """A parameter's name there, ``{layer}`` for the stacked axis, and whether it is transposed."""
    ours = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    if ours == "lm_head":
        return "lm_head.weight", False
    name = re.sub(r"\.(kernel|scale|embedding)$", ".weight", ours)
    return "model." + name.replace("layers.", "layers.{layer}.", 1), ours.endswith(".kernel")


def _model_config(folder: Path, settings: Mapping[str, Any]) -> ModelConfig:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if settings.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{folder}/config.json is not a Llama with plain rotary embeddings")
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError(f"{folder}/config.json asks for biases, which this Llama does not have")
    return ModelConfig(**model_sizes(settings))


def _fill(abstract: Tree, read: Callable[[Any], Array], folder: Path) -> Tree:
    """``abstract`` with its shapes replaced by what ``read`` gives for their paths, checked."""

    def leaf(path: Any, expected: jax.ShapeDtypeStruct | Array) -> Array:
        if isinstance(expected, jax.Array):
            return expected
        value = read(path)
        if value.shape != expected.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{folder}: {name} is {value.shape}, the model's is {expected.shape}")
        return value

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _take(tensors: Tensors, name: str, folder: Path) -> Any:
    if name not in tensors:
        raise ValueError(f"{folder}: no tensor {name!r} in its safetensors files")
    return tensors.pop(name)


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Written aside and moved into place: no interruption leaves half a file."""
    aside = path.with_suffix(".partial")
    save_file(dict(tensors), aside)
    os.replace(aside, path)
