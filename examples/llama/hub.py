"""Quantised models of the Llama architecture, from folders as the hub has them.

Llama, Mistral without a window and Qwen2, which is a Llama whose queries, keys and values have
biases; in the formats of ``jax_baracuda.quant.load_checkpoint``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jax_baracuda
from jax_baracuda.quant import load_checkpoint

from .checkpoint import build_model, model_sizes
from .config import ModelConfig
from .model import Llama

# What a config.json that leaves them out means: the defaults of transformers' LlamaConfig.
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


@dataclasses.dataclass(frozen=True)
class HubConfig(ModelConfig):
    """A ``ModelConfig``, how positions are scaled, and which tokens begin and end a text."""

    rope_scaling: tuple[tuple[str, Any], ...] = ()  # items: a config is hashed
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def rope(self) -> dict[str, Any]:
        """The options of ``apply_rope``."""
        return {"theta": self.rope_theta, "scaling": dict(self.rope_scaling) or None}


def load_hub_model(folder: Path, dtype: str | None = None) -> Llama:
    """Reads a folder, with a progress bar; arithmetic in ``dtype``, by default the folder's.

    Raises NotImplementedError or ValueError that says what this network does not have.
    """
    config = read_hub_config(folder, dtype)
    jax.eval_shape(
        lambda: jax_baracuda.apply_rope(jnp.ones((1, config.head_dim)), 0, **config.rope)
    )
    tensors = load_checkpoint(folder, dtype=config.dtype)
    model = build_model(config, tensors, folder)
    # Old checkpoints keep the rotary embedding's frequencies; some keep a tied head.
    ignored = ["lm_head.weight"] if config.tie_word_embeddings else []
    left = [n for n in tensors if n not in ignored and not n.endswith("rotary_emb.inv_freq")]
    if left:
        raise NotImplementedError(f"{folder}: tensors that this network does not use: {left[:5]}")
    return model


def read_hub_config(folder: Path, dtype: str | None = None) -> HubConfig:
    """Reads ``config.json``, and ``generation_config.json`` if there is one."""
    settings = json.loads((folder / "config.json").read_text())
    _check(folder, settings)
    heads = settings["num_attention_heads"]
    sizes = model_sizes(_DEFAULTS | {"num_key_value_heads": heads} | settings)
    sizes["dtype"] = dtype or sizes["dtype"]
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    generation = folder / "generation_config.json"
    if generation.exists():  # what it says comes before what config.json says
        settings |= json.loads(generation.read_text())
    return HubConfig(
        **sizes,
        rope_scaling=tuple(sorted(scaling.items())),
        bos_token_id=settings.get("bos_token_id"),
        eos_token_ids=_ids(settings.get("eos_token_id")),
    )


def _check(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises NotImplementedError for what the network would silently compute otherwise."""
    windows = settings.get("use_sliding_window", settings.get("model_type") != "qwen2")
    window = settings.get("sliding_window") if windows else None
    for name, given, supported in (
        ("model_type", settings.get("model_type"), ("llama", "mistral", "qwen2")),
        ("hidden_act", settings.get("hidden_act", "silu"), ("silu",)),
        ("sliding_window", window, (None,)),
        ("partial_rotary_factor", settings.get("partial_rotary_factor", 1), (1,)),
    ):
        if given not in supported:
            raise NotImplementedError(
                f"{folder}/config.json has {name} = {given!r}; supported: "
                f"{', '.join(map(repr, supported))}"
            )


def _ids(given: int | list[int] | None) -> tuple[int, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)
