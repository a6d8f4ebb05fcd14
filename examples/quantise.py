"""Rounds a trained model's layers to four bits, and says what that costs.

python examples/quantise.py                              # examples/runs/tiny to runs/tiny-int4
python examples/quantise.py --checkpoint examples/runs/small --group-size 128
python examples/generate.py --checkpoint examples/runs/tiny-int4

The new folder is an AWQ checkpoint in Hugging Face's form: ``generate.py``, ``serve.py`` and
``llama_awq.py`` run it, every projection through ``int4_matmul``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from jax_baracuda.nnx import quantize_model
from llama.checkpoint import load_model, load_settings, save_model
from llama.config import TrainConfig
from llama.data import load_corpus, validation_batches
from llama.model import Llama, cast_model
from llama.training import evaluate

RUNS = Path(__file__).parent / "runs"


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Quantises as the command line says. Validation bits per byte before and after."""
    args = parse_arguments(argv)
    folder = args.checkpoint
    if not (folder / "config.json").exists():
        raise SystemExit(f"no model in {folder}; train one: python examples/train.py")
    out = args.out or folder.with_name(f"{folder.name}-int4")
    model = cast_model(load_model(folder, args.dtype))
    settings = dataclasses.replace(load_settings(folder), remat="none")
    before = report(f"layers in {model.config.dtype}", model, settings)
    quantize_model(model, group_size=args.group_size, symmetric=args.symmetric)
    save_model(out, model)
    rounded = cast_model(load_model(out))
    after = report(f"layers of four bits, groups of {args.group_size}", rounded, settings)
    print(f"saved in {out}; next: python examples/generate.py --checkpoint {out}")
    return before, after


def report(what: str, model: Llama, settings: TrainConfig) -> float:
    """Prints and returns the bits per byte of the held-out sources."""
    held_out = validation_batches(
        load_corpus().validation, settings.batch_size, settings.context, settings.validation_windows
    )
    bits = float(evaluate(model, held_out, settings))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.layers))
    print(
        f"{what}: {bits:.3f} bits per byte (perplexity {2**bits:.3f} a byte), "
        f"{size / 1e6:.2f} MB of layers"
    )
    return bits


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=RUNS / "tiny", help="a run's folder")
    parser.add_argument("--out", type=Path, help="by default the run's folder and -int4")
    parser.add_argument(
        "--group-size", type=int, choices=(32, 64, 128), default=32, help="numbers a scale"
    )
    parser.add_argument("--symmetric", action="store_true", help="no zero points")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the arithmetic, if not the run's; the kernels take the first two",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
