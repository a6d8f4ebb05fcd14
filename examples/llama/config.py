"""Sizes of the model and of a training run, and the presets that pair them."""

from __future__ import annotations

import dataclasses


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


PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    # Two CPU cores, about a minute.
    "tiny": (ModelConfig(), TrainConfig()),
    # One H200, a few minutes.
    "small": (
        ModelConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=1024,
            initializer_range=0.02,
            dtype="bfloat16",
        ),
        TrainConfig(
            steps=600,
            batch_size=64,
            context=1024,
            learning_rate=1e-3,
            warmup_steps=100,
            validation_windows=512,
        ),
    ),
}
