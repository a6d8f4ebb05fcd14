"""Sizes of the model, of a training run and of serving, and the presets that pair the first two."""

from __future__ import annotations

import dataclasses
from typing import Literal

# Ours, jax.nn's default, or jax.nn's through cuDNN: a GPU, float16 or bfloat16.
SequenceAttention = Literal["flash_attention", "jax_nn", "jax_cudnn"]

# What the backward pass keeps of a layer: all that it needs, the results of the attention and of
# the matrix products, those of the attention, or nothing.
Remat = Literal["none", "save_products", "save_attention", "full"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama's sizes. The names are those of a Hugging Face ``config.json``."""

    vocab_size: int = 256
    hidden_size: int = 96
    intermediate_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 24
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.05
    dtype: str = "float32"  # of the arithmetic; parameters are float32 while they are trained

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; the rotary embedding needs pairs")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. ``context`` and ``batch_size`` are bytes a window and windows a step."""

    steps: int = 500
    batch_size: int = 4
    context: int = 256
    learning_rate: float = 6e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    validation_windows: int = 64
    save_every: int = 500
    seed: int = 0
    attention: SequenceAttention = "flash_attention"
    remat: Remat = "none"


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Sizes of continuous batching. None changes while it runs: one compiled step serves all."""

    page_size: int = 16  # tokens
    num_pages: int = 256
    max_requests: int = 16  # that hold pages at a time; each may decode one token a step
    max_prompts: int = 4  # of them, whose prompts one step works on
    chunk_tokens: int = 64  # of prompts a step, together
    max_length: int = 256  # of a prompt and its answer, if the model can

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")

    @property
    def table_entries(self) -> int:
        """Histories that a step reads: those that decode, then those whose prompts it works on."""
        return self.max_requests + self.max_prompts

    @property
    def step_tokens(self) -> int:
        """Rows of a step."""
        return self.max_requests + self.chunk_tokens

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)


_SMALL = ModelConfig(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=1024,
    initializer_range=0.02,
    dtype="bfloat16",
)

PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    # Two CPU cores, about a minute.
    "tiny": (ModelConfig(), TrainConfig()),
    # One H200, a few minutes.
    "small": (
        _SMALL,
        TrainConfig(
            steps=600,
            batch_size=64,
            context=1024,
            learning_rate=1e-3,
            warmup_steps=100,
            validation_windows=512,
        ),
    ),
    # About 350 M parameters, the size of bench_training.py: one H200, some fifteen minutes.
    "medium": (
        ModelConfig(
            hidden_size=1024,
            intermediate_size=3840,
            num_hidden_layers=24,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=128,
            max_position_embeddings=16384,
            rope_theta=1e6,
            initializer_range=0.02,
            dtype="bfloat16",
        ),
        TrainConfig(
            steps=4000,
            batch_size=8,
            context=4096,
            learning_rate=6e-4,
            warmup_steps=200,
            validation_windows=64,
            remat="save_products",
        ),
    ),
    # The network of "small" on one window of 64 KB a step: see `logits_bytes`.
    "long": (
        dataclasses.replace(_SMALL, max_position_embeddings=65536, rope_theta=1e6),
        TrainConfig(
            steps=300,
            batch_size=1,
            context=65536,
            learning_rate=1e-3,
            warmup_steps=100,
            validation_windows=4,
            remat="save_attention",
        ),
    ),
}


def logits_bytes(model: ModelConfig, run: TrainConfig) -> int:
    """Bytes of one layer's attention logits, float32 [B, Hq, S, S]: what jax.nn's XLA path makes.

    Its probabilities in the dtype of the model, and in training the gradients of both, come on top.
    """
    return 4 * run.batch_size * model.num_attention_heads * run.context**2


def context_bytes(model: ModelConfig, run: TrainConfig) -> int:
    """Bytes that one layer keeps with remat "save_attention": context [B, S, Hq, D] and LSE."""
    item = 4 if model.dtype == "float32" else 2
    rows = run.batch_size * run.context * model.num_attention_heads
    return rows * (model.head_dim * item + 4)
