"""Loss, optimizer and one training step. All functions of arrays; the loop is in ``train.py``."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .config import TrainConfig
from .model import Llama


class TrainState(NamedTuple):
    """What a step updates and a checkpoint keeps."""

    model: Llama
    optimizer: optax.OptState
    step: Array  # int32 []


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2017, arXiv:1711.05101), clipped, warm-up then cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, config.steps // 4),
        decay_steps=max(config.steps, 1),
        end_value=0.1 * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay, mask=_decays),
    )


def create_train_state(model: Llama, config: TrainConfig) -> TrainState:
    """A fresh state at step 0."""
    return TrainState(model, make_optimizer(config).init(model), jnp.int32(0))


def loss_fn(model: Llama, windows: Array, config: TrainConfig) -> Array:
    """Mean cross-entropy in nats a byte; windows uint8 or int32 [B, S + 1]."""
    tokens = windows.astype(jnp.int32)
    logits = model(tokens[:, :-1], attention=config.attention, remat=config.remat)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(state: TrainState, windows: Array, config: TrainConfig) -> tuple[TrainState, Array]:
    """One update. Returns the new state and the loss before it, in bits a byte."""
    loss, gradients = jax.value_and_grad(loss_fn)(state.model, windows, config)
    updates, optimizer = make_optimizer(config).update(gradients, state.optimizer, state.model)
    model = optax.apply_updates(state.model, updates)
    return TrainState(model, optimizer, state.step + 1), loss / math.log(2)


@partial(jax.jit, static_argnames="config")
def evaluate(model: Llama, batches: Array, config: TrainConfig) -> Array:
    """Mean loss over ``batches`` [N, B, S + 1], in bits a byte."""
    losses = jax.lax.map(partial(loss_fn, model, config=config), batches)
    return losses.mean() / math.log(2)


def _decays(model: Llama) -> Llama:
    """Weight decay is for matrices; the norms' scales are left alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "scale" not in jax.tree_util.keystr(path), model
    )
