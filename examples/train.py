"""Trains a byte-level Llama on the Python standard library's sources.

python examples/train.py                      # tiny: about a minute on two CPU cores
python examples/train.py --preset small       # a few minutes on one H200
python examples/train.py --preset medium      # 350 M parameters, windows of 4096 bytes, on one H200
python examples/train.py --preset long        # windows of 65536 bytes, on one GPU
python examples/train.py --resume             # goes on where an interrupted run stopped
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from tqdm import tqdm

from llama.checkpoint import load_training, save_training
from llama.config import (
    PRESETS,
    Remat,
    SequenceAttention,
    TrainConfig,
    context_bytes,
    logits_bytes,
)
from llama.data import load_corpus, train_batch, validation_batches
from llama.model import create_model
from llama.training import TrainState, create_train_state, evaluate, train_step

RUNS = Path(__file__).parent / "runs"


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Trains as the command line says. Returns validation bits per byte before and after."""
    args = parse_arguments(argv)
    folder = args.out or RUNS / args.preset
    state, config = begin(args, folder)
    corpus = load_corpus()
    held_out = validation_batches(
        corpus.validation, config.batch_size, config.context, config.validation_windows
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.model))
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(corpus.train) / 1e6:.1f} MB to train on, "
        f"{len(corpus.validation) / 1e6:.2f} MB held out, on {jax.devices()[0].device_kind}"
    )
    before = float(evaluate(state.model, held_out, config))
    print(f"validation {before:.3f} bits per byte at step {int(state.step)}")
    began = time.perf_counter()
    state = train(state, config, corpus.train, folder)
    seconds = time.perf_counter() - began
    after = float(evaluate(state.model, held_out, config))
    print(f"validation {after:.3f} bits per byte at step {int(state.step)}, {seconds:.0f} s")
    print(f"saved in {folder}; next: python examples/generate.py --checkpoint {folder}")
    return before, after


def begin(args: argparse.Namespace, folder: Path) -> tuple[TrainState, TrainConfig]:
    """A fresh run of the preset, or the one in ``folder``, with the command line's changes."""
    names = ("steps", "seed", "attention", "remat")
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.resume:
        state, config = load_training(folder)
        return state, dataclasses.replace(config, **changes)
    model_config, config = PRESETS[args.preset]
    config = dataclasses.replace(config, **changes)
    return create_train_state(create_model(model_config, config.seed), config), config


def train(state: TrainState, config: TrainConfig, data: np.ndarray, folder: Path) -> TrainState:
    """The loop: steps up to ``config.steps``, a progress bar, checkpoints in ``folder``."""
    first = int(state.step)
    a_step = config.batch_size * config.context
    with tqdm(
        total=config.steps * a_step, initial=first * a_step, unit="B", unit_scale=True
    ) as bar:
        for step in range(first, config.steps):
            windows = train_batch(
                data, config.batch_size, config.context, seed=config.seed, step=step
            )
            state, loss = train_step(state, windows, config)
            if step % 10 == 0 or step + 1 == config.steps:
                # Reading the loss waits for the device; between two reads it runs ahead.
                bar.set_postfix(step=step + 1, bits_per_byte=f"{float(loss):.3f}", refresh=False)
            bar.update(a_step)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save_training(folder, state, config)
    return state


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    logits, context = logits_bytes(*PRESETS["long"]), context_bytes(*PRESETS["long"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="tiny",
        help="tiny: two CPU cores; small: a GPU, bfloat16; medium: 350 M parameters; long: small "
        f"on windows of {PRESETS['long'][1].context} bytes. There jax_nn makes "
        f"{logits / 1e9:.0f} GB of float32 logits a layer (4 * heads * context^2), and in "
        f"training their gradients: no GPU holds them. flash_attention keeps "
        f"{context / 1e6:.0f} MB a layer, its output and log-sum-exp",
    )
    parser.add_argument(
        "--attention",
        choices=get_args(SequenceAttention),
        help="jax_baracuda.flash_attention, the default, or jax.nn.dot_product_attention: its own "
        "choice, or cuDNN's kernel (a GPU, bfloat16)",
    )
    parser.add_argument(
        "--remat",
        choices=get_args(Remat),
        help="what a layer keeps for the backward pass: all (none), its input and the results of "
        "its attention kernel (save_attention; jax_nn has none) and matrix products "
        "(save_products), or its input alone (full). The rest is computed again. Default: the "
        "preset's",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/PRESET here)")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--seed", type=int, help="instead of the preset's")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
