"""Runs a quantised Llama from the hub: four-bit projections, paged decoding in one compiled loop.

hf download hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4 --local-dir llama-awq
python examples/llama_awq.py llama-awq --prompt "The capital of France is"
python examples/llama_awq.py llama-awq --prompt "One" --prompt "Two" --temperature 0.7 --top-p 0.9
python examples/llama_awq.py examples/runs/tiny-int4 --prompt "import "    # what quantise.py wrote

AWQ, GPTQ and compressed-tensors folders will do, of Llama, Mistral and Qwen2. Prompts are text if
the folder has a tokenizer.json and the package tokenizers is installed (special tokens may be
spelled out), bytes for a vocabulary of 256, else numbers of tokens: --prompt "1 529 7".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from llama.decoding import Sampling
from llama.hub import HubConfig, load_hub_model
from llama.model import Llama
from llama.paged_decoding import PagedState, advance, empty_state, pack_prompts, start
from llama.tokens import Tokens, load_tokens


def main(argv: Sequence[str] | None = None) -> list[list[int]]:
    """Generates as the command line says. Each prompt's new tokens, without the end's."""
    args = parse_arguments(argv)
    try:
        model = load_hub_model(args.folder, args.dtype)
    except (FileNotFoundError, NotImplementedError, ValueError) as error:
        raise SystemExit(str(error)) from None
    config = cast(HubConfig, model.config)
    tokens = load_tokens(args.folder, config.vocab_size)
    prompts = [encode(tokens, prompt, config, args.max_new_tokens) for prompt in args.prompt]
    generated = [
        [int(token) for token in row if token >= 0 and token not in config.eos_token_ids]
        for row in generate(model, prompts, args)
    ]
    for prompt, ids in zip(prompts, generated, strict=True):
        print(f"{'-' * 80}\n{tokens.decode([*prompt, *ids])}")
    return generated


def generate(model: Llama, prompts: Sequence[list[int]], args: argparse.Namespace) -> np.ndarray:
    """The new tokens, int32 [B, steps], -1 after the end of a text. Prints how fast they came."""
    sampling = Sampling(args.temperature, args.top_p)
    lengths, key = [len(prompt) for prompt in prompts], jax.random.key(args.seed)
    state = empty_state(model.config, lengths, args.max_new_tokens, key, args.page_size)
    inputs = model, state, pack_prompts(prompts)
    began = time.perf_counter()
    prefill = start.lower(*inputs, sampling=sampling).compile()
    decode = advance.lower(model, state, jnp.int32(0), sampling=sampling).compile()
    ready = time.perf_counter()
    state = jax.block_until_ready(prefill(*inputs))
    first = time.perf_counter()
    with tqdm(total=state.tokens.size, unit="token") as bar:
        bar.update(len(prompts))
        for until in range(1 + args.stream, args.max_new_tokens + args.stream, args.stream):
            state = decode(model, state, jnp.int32(min(until, args.max_new_tokens)))
            bar.update(count(state) - bar.n)
            if state.done.all():
                break
    seconds = time.perf_counter() - first
    made, rows = count(state) - len(prompts), sum(lengths)
    print(
        f"{rows} tokens of prompts in {first - ready:.2f} s; then {made} tokens in "
        f"{seconds:.2f} s: {made / seconds:.0f} tokens/s ({jax.devices()[0].device_kind}); "
        f"compiled in {ready - began:.1f} s"
    )
    return np.asarray(state.tokens)


def count(state: PagedState) -> int:
    """How many tokens there are; waits for them."""
    return int((state.tokens >= 0).sum())


def encode(tokens: Tokens, prompt: str, config: HubConfig, steps: int) -> list[int]:
    """A prompt's token ids, which the model can take and continue by ``steps``."""
    ids = tokens.encode(prompt)
    if not ids and config.bos_token_id is not None:
        ids = [config.bos_token_id]
    if not ids or not all(0 <= token < config.vocab_size for token in ids):
        raise SystemExit(f"{prompt!r} gives {ids}; wanted are tokens from 0 to {config.vocab_size}")
    if len(ids) + steps > config.max_position_embeddings:
        raise SystemExit(
            f"a prompt of {len(ids)} tokens and {steps} new ones exceed the model's "
            f"max_position_embeddings={config.max_position_embeddings}"
        )
    return ids


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="config.json and safetensors, as on the hub")
    parser.add_argument("--prompt", action="append", required=True, help="may be given again")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page-size", type=int, default=16, help="tokens a page")
    parser.add_argument(
        "--stream", type=int, default=32, metavar="N", help="the bar moves every N tokens"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the arithmetic, if not the folder's; the kernels take the first two",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
