"""LoRA over frozen four-bit weights: trains a small model of text, rounds it, fine-tunes it.

python examples/lora_int4.py                  # well under a minute on two CPU cores

The model reads 16 bytes of the Python standard library and predicts the next. Its linear layers are
rounded to four bits by ``quantize_model``. Then LoRA matrices learn text in capitals: the gradients
go through the four-bit layers, which do not change.
"""

from __future__ import annotations

import argparse
import pydoc
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_baracuda.nnx import Int4Linear, Int4Param, quantize_model

CONTEXT, WIDTH, RANK, BATCH = 16, 128, 8, 256


class NextByte(nnx.Module):
    """Logits of the byte after each window of CONTEXT bytes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(256, 32, rngs=rngs)
        self.into = nnx.Linear(CONTEXT * 32, WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, windows: jax.Array) -> jax.Array:
        x = self.embed(windows).reshape(len(windows), -1)
        x = jax.nn.silu(self.into(x))
        x = x + jax.nn.silu(self.hidden(x))
        return self.out(x)


def add_lora(model: NextByte, rngs: nnx.Rngs) -> None:
    """Puts LoRA matrices beside every four-bit layer."""
    for name, layer in list(vars(model).items()):
        if isinstance(layer, Int4Linear):
            sizes = layer.in_features, RANK, layer.out_features
            setattr(model, name, nnx.LoRA(*sizes, base_module=layer, rngs=rngs))


def loss_of(model: NextByte, windows: jax.Array) -> jax.Array:
    """Bits per byte; windows are [B, CONTEXT + 1]."""
    logits = model(windows[:, :-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1])
    return nats.mean() / np.log(2)


def batch(text: np.ndarray, rng: np.random.Generator, size: int = BATCH) -> jax.Array:
    """Windows of the text, from anywhere."""
    starts = rng.integers(0, len(text) - CONTEXT, size)
    return jnp.asarray(text[starts[:, None] + np.arange(CONTEXT + 1)], jnp.int32)


def train(model: NextByte, text: np.ndarray, kind: type, *, steps: int, rate: float) -> None:
    """Adam on the variables of one kind."""
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=kind)
    rng = np.random.default_rng(0)

    @nnx.jit
    def step(model: NextByte, optimizer: nnx.Optimizer, windows: jax.Array) -> None:
        gradients = nnx.grad(loss_of, argnums=nnx.DiffState(0, kind))(model, windows)
        optimizer.update(model, gradients)

    for _ in range(steps):
        step(model, optimizer, batch(text, rng))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs it all; the bits per byte of each stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="of each of the two trainings")
    steps = parser.parse_args(argv).steps

    plain = np.frombuffer(Path(pydoc.__file__).read_bytes(), np.uint8)
    capitals = np.frombuffer(Path(pydoc.__file__).read_bytes().upper(), np.uint8)
    held = {
        name: batch(text, np.random.default_rng(1), 4 * BATCH)
        for name, text in (("plain", plain), ("capitals", capitals))
    }
    found: dict[str, float] = {}

    def report(stage: str, text: str) -> None:
        found[stage] = float(nnx.jit(loss_of)(model, held[text]))
        print(f"{stage:>45}: {found[stage]:.2f} bits per byte")

    model = NextByte(nnx.Rngs(0))
    train(model, plain, nnx.Param, steps=steps, rate=2e-3)
    report("trained in float32", "plain")
    quantize_model(model, group_size=32)
    report("rounded to four bits", "plain")
    report("on text in capitals", "capitals")
    add_lora(model, nnx.Rngs(1))
    frozen, tuned = (nnx.state(model, kind) for kind in (Int4Param, nnx.LoRAParam))
    before = jax.tree.map(jnp.copy, frozen)
    train(model, capitals, nnx.LoRAParam, steps=steps, rate=4e-3)
    report("after LoRA", "capitals")

    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, nnx.state(model, Int4Param))
    if not jax.tree.all(same):
        raise RuntimeError("a frozen weight has changed")
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(state)) for state in (frozen, tuned)]
    print(f"{sizes[0] / 1e3:.0f} kB of four-bit weights stayed; {sizes[1] / 1e3:.0f} kB were tuned")
    return found


if __name__ == "__main__":
    main()
