"""Continues prompts with a trained model: prefill and the whole decode loop in one compiled call.

python examples/generate.py
python examples/generate.py --prompt "def main(" --prompt "class Queue:" --temperature 0
python examples/generate.py --attention jax_nn          # the same program on jax.nn's attention
"""

from __future__ import annotations

import argparse
import codecs
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llama.cache import KVCache, empty_cache
from llama.checkpoint import load_model
from llama.config import ModelConfig
from llama.data import END_OF_TEXT
from llama.decoding import Sampling, advance_jit, generate, pad_prompts, start_jit
from llama.model import Llama, cast_model
from llama.ops import DecodeAttention

RUNS = Path(__file__).parent / "runs"
PROMPTS = ["def ", "class Queue:\n    def __init__(self", "import os\nimport sys\n\n\ndef main("]


def main(argv: Sequence[str] | None = None) -> np.ndarray:
    """Generates as the command line says, prints, and returns the tokens, int32 [B, steps]."""
    args = parse_arguments(argv)
    if not (args.checkpoint / "config.json").exists():
        raise SystemExit(f"no model in {args.checkpoint}; train one: python examples/train.py")
    model = cast_model(load_model(args.checkpoint))
    prompts = [prompt.encode() for prompt in args.prompt or PROMPTS]
    tokens, lengths = (jnp.asarray(array) for array in pad_prompts(prompts))
    cache = make_cache(model.config, tokens, args.max_new_tokens)
    sampling = Sampling(args.temperature, args.top_p)
    inputs = (model, cache, tokens, lengths, jax.random.key(args.seed))
    if args.stream:
        return stream(args, prompts[0], inputs, sampling)

    began = time.perf_counter()
    settings = dict(steps=args.max_new_tokens, sampling=sampling, attention=args.attention)
    compiled = generate.lower(*inputs, **settings).compile()
    ready = time.perf_counter()
    result, _ = jax.block_until_ready(compiled(*inputs))
    seconds = time.perf_counter() - ready
    generated = np.asarray(result)
    for prompt, row in zip(prompts, generated, strict=True):
        print(f"{'-' * 80}\n{show(prompt + as_bytes(row))}")
    report(generated, seconds, args.attention)
    print(f"compiled in {ready - began:.1f} s")
    return generated


def stream(
    args: argparse.Namespace,
    prompt: bytes,
    inputs: tuple[Llama, KVCache, Array, Array, Array],
    sampling: Sampling,
) -> np.ndarray:
    """Prints one prompt's continuation as it is made, ``args.stream`` tokens a call."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    print(decoder.decode(prompt), end="", flush=True)
    pieces = []
    began = time.perf_counter()
    for piece in decode_in_pieces(args, inputs, sampling):
        pieces.append(piece)
        print(decoder.decode(as_bytes(piece[0])), end="", flush=True)
        if END_OF_TEXT in piece[0]:
            break
    print()
    generated = np.concatenate(pieces, axis=1)
    report(generated, time.perf_counter() - began, f"{args.attention}, compilation included")
    return generated


def decode_in_pieces(
    args: argparse.Namespace,
    inputs: tuple[Llama, KVCache, Array, Array, Array],
    sampling: Sampling,
) -> Iterator[np.ndarray]:
    """The decode loop cut into calls of ``args.stream`` steps; the state stays on the device."""
    model, *rest = inputs
    state = start_jit(model, *rest, sampling=sampling, attention=args.attention)
    for made in range(0, args.max_new_tokens, args.stream):
        steps = min(args.stream, args.max_new_tokens - made)
        tokens, state = advance_jit(
            model, state, steps=steps, sampling=sampling, attention=args.attention
        )
        yield np.asarray(tokens)


def make_cache(config: ModelConfig, tokens: Array, steps: int) -> KVCache:
    """A cache that holds the longest prompt and ``steps`` more tokens, if the model can."""
    batch, longest = tokens.shape
    if longest + steps > config.max_position_embeddings:
        raise SystemExit(
            f"a prompt of {longest} bytes and {steps} new ones exceed the model's "
            f"max_position_embeddings={config.max_position_embeddings}"
        )
    return empty_cache(config, batch, longest + steps)


def as_bytes(tokens: np.ndarray) -> bytes:
    """Tokens -> bytes, up to the end of the text."""
    return tokens.astype(np.uint8).tobytes().split(bytes([END_OF_TEXT]))[0]


def show(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def report(generated: np.ndarray, seconds: float, how: str) -> None:
    print("-" * 80)
    print(
        f"{generated.shape[0]} x {generated.shape[1]} tokens in {seconds:.2f} s: "
        f"{generated.size / seconds:.0f} tokens/s ({how}, {jax.devices()[0].device_kind})"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=RUNS / "tiny", help="a run's folder")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--attention",
        choices=get_args(DecodeAttention),
        default="flash_decode",
        help="of the decode loop; the prompts take flash_attention or, with jax_nn, jax.nn too",
    )
    parser.add_argument("--stream", type=int, metavar="N", help="one prompt, N tokens at a time")
    args = parser.parse_args(argv)
    if args.stream and len(args.prompt or PROMPTS) != 1:
        parser.error("--stream shows one prompt; give exactly one --prompt")
    return args


if __name__ == "__main__":
    main()
