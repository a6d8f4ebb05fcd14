"""Checkpoints: ``config.json`` and ``model.safetensors``, laid out as a Hugging Face Llama.

Ours are readable there and theirs here. A training run adds ``training.json`` (its settings) and
``training.safetensors`` (optimizer and step), from which it resumes exactly.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from safetensors.flax import load_file, save_file

from .config import ModelConfig, TrainConfig
from .model import Llama
from .training import TrainState, create_train_state

Tree = TypeVar("Tree")


def save_model(folder: Path, model: Llama) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(model.config)
    settings["torch_dtype"] = settings.pop("dtype")
    settings |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    _write_json(folder / "config.json", settings)
    tensors: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name, transposed = _hugging_face_name(path)
        value = leaf.swapaxes(-1, -2) if transposed else leaf
        if "{layer}" in name:
            tensors |= {name.format(layer=i): rows for i, rows in enumerate(value)}
        else:
            tensors[name] = value
    _write_tensors(folder / "model.safetensors", tensors)


def load_model(folder: Path) -> Llama:
    """Reads a model. Raises FileNotFoundError or ValueError that says what is wrong with it."""
    config = _read_model_config(folder / "config.json")
    tensors: dict[str, Array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)

    def read(path: Any) -> Array:
        name, transposed = _hugging_face_name(path)
        if "{layer}" in name:
            layers = range(config.num_hidden_layers)
            value = jnp.stack([_get(tensors, name.format(layer=i), folder) for i in layers])
        else:
            value = _get(tensors, name, folder)
        return value.swapaxes(-1, -2) if transposed else value

    return _fill(jax.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), read, folder)


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
    config = TrainConfig(**json.loads((folder / "training.json").read_text()))
    tensors = load_file(folder / "training.safetensors")
    fresh = jax.eval_shape(lambda: create_train_state(model, config))
    optimizer, step = _fill(
        (fresh.optimizer, fresh.step),
        lambda path: _get(tensors, jax.tree_util.keystr(path), folder),
        folder,
    )
    return TrainState(model, optimizer, step), config


def _hugging_face_name(path: Any) -> tuple[str, bool]:
    """A parameter's name there, ``{layer}`` for the stacked axis, and whether it is transposed."""
    ours = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    if ours == "lm_head":
        return "lm_head.weight", False
    name = re.sub(r"\.(kernel|scale|embedding)$", ".weight", ours)
    return "model." + name.replace("layers.", "layers.{layer}.", 1), ours.endswith(".kernel")


def _read_model_config(path: Path) -> ModelConfig:
    settings = json.loads(path.read_text())
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if settings.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path} is not a Llama with plain rotary embeddings")
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError(f"{path} asks for biases, which this Llama does not have")
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    chosen = {name: value for name, value in settings.items() if name in known}
    if "rope_theta" in rope:
        chosen["rope_theta"] = rope["rope_theta"]
    chosen["dtype"] = settings.get("torch_dtype") or settings.get("dtype") or "float32"
    if not chosen.get("head_dim"):
        chosen["head_dim"] = chosen["hidden_size"] // chosen["num_attention_heads"]
    return ModelConfig(**chosen)


def _fill(abstract: Tree, read: Callable[[Any], Array], folder: Path) -> Tree:
    """``abstract`` with its leaves replaced by what ``read`` gives for their paths, checked."""

    def leaf(path: Any, expected: jax.ShapeDtypeStruct) -> Array:
        value = read(path)
        if value.shape != expected.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{folder}: {name} is {value.shape}, the model's is {expected.shape}")
        return value

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _get(tensors: Mapping[str, Array], name: str, folder: Path) -> Array:
    if name not in tensors:
        raise ValueError(f"{folder}: no tensor {name!r} in its safetensors files")
    return tensors[name]


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Written aside and moved into place: no interruption leaves half a file."""
    aside = path.with_suffix(".partial")
    save_file(dict(tensors), aside)
    os.replace(aside, path)
