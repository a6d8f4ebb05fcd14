"""A Llama's forward pass in numpy: the oracle of the example's tests."""

from __future__ import annotations

import numpy as np

from llama.config import ModelConfig


def numpy_llama(
    tensors: dict[str, np.ndarray],
    config: ModelConfig,
    tokens: np.ndarray,
    frequencies: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [S, V] of one sequence, in float64, from a Hugging Face checkpoint's definition.

    ``frequencies`` [D / 2] are those of the rotary embedding, if they are scaled.
    """
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    length = len(tokens)
    if frequencies is None:
        frequencies = config.rope_theta ** (-np.arange(0, dim, 2) / dim)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean_square = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + config.rms_norm_eps) * tensors[name]

    def rotate(x: np.ndarray) -> np.ndarray:
        angles = np.outer(np.arange(length), frequencies)
        turn = np.exp(1j * angles)[:, None] * (x[..., : dim // 2] + 1j * x[..., dim // 2 :])
        return np.concatenate([turn.real, turn.imag], -1)

    def project(x: np.ndarray, name: str) -> np.ndarray:
        return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", 0)

    x = tensors["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (project(h, f"{p}self_attn.{n}_proj").reshape(length, -1, dim) for n in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(rows, heads // kv_heads, axis=1) for rows in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(dim)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = np.einsum("hij,jhd->ihd", weights, v).reshape(length, -1)
        x = x + project(context, p + "self_attn.o_proj")
        h = norm(x, p + "post_attention_layernorm.weight")
        gate, up = project(h, p + "mlp.gate_proj"), project(h, p + "mlp.up_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * up, p + "mlp.down_proj")
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return project(norm(x, "model.norm.weight"), head)
