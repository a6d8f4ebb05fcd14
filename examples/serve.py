"""Serves many requests at once with a trained model: continuous batching on paged stores.

python examples/serve.py
python examples/serve.py --requests 64 --gap 0.5 --num-pages 64     # pages run out: some wait
python examples/serve.py --prompt "def main(" --prompt "class Queue:" --temperature 0
python examples/serve.py --preset small                             # untrained: only for its speed
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from llama.checkpoint import load_model
from llama.config import PRESETS, ServingConfig
from llama.console import Display, make_display
from llama.data import load_corpus
from llama.model import Llama, cast_model, create_model
from llama.scheduler import Request, Stream
from llama.serving import Engine

RUNS = Path(__file__).parent / "runs"
SHARED_PREFIX = '"""Tools for the command line."""\n\nimport os\nimport re\nimport sys\n\n\n'


class Arrival(NamedTuple):
    """A request, and the step before which it comes."""

    step: int
    request: Request


@dataclasses.dataclass
class Served:
    """A stream and its times, in seconds of ``time.perf_counter``."""

    stream: Stream
    arrived: float
    first_token: float = 0.0
    ended: float = 0.0


def main(argv: Sequence[str] | None = None) -> list[bytes]:
    """Serves as the command line says. Returns what each request got, in order of arrival."""
    args = parse_arguments(argv)
    model = make_model(args)
    settings = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(ServingConfig)
    }
    engine = Engine(model, ServingConfig(**settings))
    arrivals = make_arrivals(args)
    compilation = engine.warm_up()
    try:
        with make_display(engine, len(arrivals), args.plain) as display:
            began = time.perf_counter()
            served = serve(engine, arrivals, display)
            seconds = time.perf_counter() - began
    except ValueError as error:
        raise SystemExit(str(error)) from None
    report(engine, served, seconds)
    print(f"one step function, compiled in {compilation:.1f} s")
    return [one.stream.generated for one in served]


def serve(engine: Engine, arrivals: Sequence[Arrival], display: Display) -> list[Served]:
    """Runs until all requests have come and ended."""
    served: dict[Stream, Served] = {}
    to_come = deque(arrivals)
    while to_come or engine.is_busy:
        while to_come and (to_come[0].step <= engine.steps or not engine.is_busy):
            stream = engine.submit(to_come.popleft().request)
            served[stream] = Served(stream, time.perf_counter())
            display.update(stream)
        news = engine.step()
        now = time.perf_counter()
        for stream, _ in news:
            display.update(stream)
            served[stream].first_token = served[stream].first_token or now
            served[stream].ended = now
    return list(served.values())


def report(engine: Engine, served: Sequence[Served], seconds: float) -> None:
    """Prints the summary of a run."""
    counters = engine.scheduler.counters
    tokens = sum(len(one.stream.generated) for one in served)
    prompts = sum(one.stream.prompt_length for one in served)
    waits = [1e3 * (one.first_token - one.arrived) for one in served]
    latencies = [1e3 * (one.ended - one.arrived) for one in served]
    print("-" * 80)
    print(
        f"{len(served)} requests, {tokens} tokens in {seconds:.2f} s: "
        f"{tokens / seconds:.0f} tokens/s ({jax.devices()[0].device_kind})"
    )
    print(f"first token after {spread(waits)}, last token after {spread(latencies)}")
    print(
        f"{prompts} bytes of prompts, {counters.shared} of them shared; {counters.computed} rows "
        f"in {engine.steps} steps, {1e3 * seconds / engine.steps:.2f} ms each; "
        f"{counters.preemptions} preemptions"
    )


def spread(milliseconds: Sequence[float]) -> str:
    return f"{np.mean(milliseconds):.0f} ms on average, {np.max(milliseconds):.0f} at most"


def make_model(args: argparse.Namespace) -> Llama:
    if args.preset:
        return cast_model(create_model(PRESETS[args.preset][0], args.seed))
    if not (args.checkpoint / "config.json").exists():
        raise SystemExit(
            f"no model in {args.checkpoint}; train one (python examples/train.py), or take an "
            "untrained one to see its speed (--preset tiny)"
        )
    return cast_model(load_model(args.checkpoint))


def make_arrivals(args: argparse.Namespace) -> list[Arrival]:
    """The workload: it depends on the arguments alone, on any machine of the same Python."""
    random = np.random.default_rng(args.seed)
    prompts = [prompt.encode() for prompt in args.prompt] if args.prompt else held_out(args, random)
    longest, gaps = args.max_new_tokens, random.exponential(args.gap, len(prompts))
    return [
        Arrival(
            step=int(step),
            request=Request(
                args.shared_prefix.encode() + prompt,
                max_new_tokens=longest if args.prompt else int(random.integers(1, longest + 1)),
                temperature=args.temperature,
                seed=args.seed + number,
            ),
        )
        for number, (prompt, step) in enumerate(zip(prompts, np.cumsum(gaps), strict=True))
    ]


def held_out(args: argparse.Namespace, random: np.random.Generator) -> list[bytes]:
    """Beginnings of functions and classes that the model was not trained on."""
    text = load_corpus().validation.tobytes()
    starts = [match.start() for match in re.finditer(rb"^(def|class) ", text, re.MULTILINE)]
    chosen = random.choice(starts, args.requests)
    lengths = random.integers(1, args.prompt_bytes + 1, args.requests)
    return [text[start : start + length] for start, length in zip(chosen, lengths, strict=True)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model = parser.add_argument_group("model").add_mutually_exclusive_group()
    model.add_argument("--checkpoint", type=Path, default=RUNS / "tiny", help="a run's folder")
    model.add_argument("--preset", choices=sorted(PRESETS), help="an untrained model of this size")

    load = parser.add_argument_group("requests")
    load.add_argument("--requests", type=int, default=24, help="how many, of held-out sources")
    load.add_argument("--prompt-bytes", type=int, default=64, help="the longest of their prompts")
    load.add_argument("--prompt", action="append", help="instead of those; may be given again")
    load.add_argument("--shared-prefix", default=SHARED_PREFIX, help="every prompt begins with it")
    load.add_argument("--max-new-tokens", type=int, default=96, help="the longest answer")
    load.add_argument("--gap", type=float, default=4.0, help="mean steps between two arrivals")
    load.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    load.add_argument("--seed", type=int, default=0)

    sizes = parser.add_argument_group("sizes, fixed while it runs")
    helps = {
        "page_size": "tokens a page",
        "num_pages": "of the store, a layer; when there are none left, requests wait",
        "max_requests": "that run at a time",
        "max_prompts": "of them, whose prompts one step works on",
        "chunk_tokens": "tokens of prompts in a step",
        "max_length": "of a prompt and its answer; the model's own limit, if that is less",
    }
    for field in dataclasses.fields(ServingConfig):
        flag = f"--{field.name.replace('_', '-')}"
        sizes.add_argument(flag, type=int, default=field.default, help=helps[field.name])
    parser.add_argument("--plain", action="store_true", help="lines of text on a terminal, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
