"""Continuous batching of the Llama example: what it generates, compiles and prints."""

from __future__ import annotations

import dataclasses
import io
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import serve as serve_cli
from llama import console
from llama.cache import empty_cache
from llama.checkpoint import save_model
from llama.config import ModelConfig, ServingConfig
from llama.decoding import generate
from llama.model import Llama, create_model
from llama.paged import draw, empty_store, jitted_step
from llama.scheduler import Plan, Request, Stream
from llama.serving import Engine

# As in test_llama.py: logits far apart, so that greedy streams are lively and ties impossible.
TOY = ModelConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.5,
    tie_word_embeddings=False,
)
NEW = 24  # the longest answer
POOL = 96  # tokens: room for two or three requests
SYSTEM = b"# a system prompt\n"
PROMPTS = [b"", b"x", b"def f(x):", b"import os\nimport sys\nimport", SYSTEM, SYSTEM + b"def g"]
PROMPTS += [SYSTEM + bytes([65 + i]) * i for i in range(1, 8)]


def sizes(page_size: int = 4) -> ServingConfig:
    """Those of most tests, so that they share one compiled step."""
    return ServingConfig(
        page_size=page_size,
        num_pages=POOL // page_size,
        max_requests=5,
        max_prompts=2,
        chunk_tokens=7,
    )


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """float32 products stay float32 on a GPU, where the default is TF32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model() -> Llama:
    return create_model(TOY, seed=1)


@pytest.fixture(scope="module")
def answers(model: Llama) -> dict[bytes, bytes]:
    """What each prompt gets alone, from the contiguous cache, greedily."""
    longest = max(map(len, PROMPTS))
    found = {}
    for prompt in PROMPTS:
        text = prompt or b"\0"
        tokens = np.frombuffer(text.ljust(longest, b"\0"), np.uint8).astype(np.int32)[None]
        with jax.default_matmul_precision("highest"):
            made, _ = generate(
                model,
                empty_cache(TOY, 1, longest + NEW),
                tokens,
                np.array([len(text)], np.int32),
                jax.random.key(0),
                steps=NEW,
            )
        found[prompt] = np.asarray(made[0]).astype(np.uint8).tobytes()
    return found


def until(answer: bytes, request: Request) -> bytes:
    """The part of an answer that a request asks for."""
    stop = answer.find(bytes([request.stop])) if request.stop >= 0 else -1
    end = request.max_new_tokens if stop < 0 else min(stop + 1, request.max_new_tokens)
    return answer[:end]


def run(engine: Engine, arrivals: Sequence[tuple[int, Request]]) -> list[Stream]:
    """Serves requests that come before the steps that are given with them."""
    streams: list[Stream] = []
    first = engine.steps
    while len(streams) < len(arrivals) or engine.is_busy:
        while len(streams) < len(arrivals) and arrivals[len(streams)][0] <= engine.steps - first:
            streams.append(engine.submit(arrivals[len(streams)][1]))
        engine.step()
    return streams


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_each_request_gets_what_it_gets_alone(
    model: Llama, answers: dict[bytes, bytes], page_size: int
) -> None:
    """Greedily, whatever runs beside it, wherever its pages are, shared and preempted or not."""
    engine = Engine(model, sizes(page_size))
    chance = random.Random(page_size)
    for gap in (0, 1, 3, 6):
        requests = []
        for prompt in chance.choices(PROMPTS, k=12):
            stop = chance.choice([-1, answers[prompt][5], answers[prompt][-1]])
            requests.append(Request(prompt, chance.randint(1, NEW), stop=stop))
        steps = np.cumsum([chance.randint(0, 2 * gap) for _ in requests]).tolist()
        streams = run(engine, list(zip(steps, requests, strict=True)))
        for stream in streams:
            assert stream.generated == until(answers[stream.request.prompt], stream.request)
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.shared > 0
    assert len({answer[-4:] for answer in answers.values()}) > len(PROMPTS) // 2  # lively


def test_random_answers_do_not_depend_on_the_company(model: Llama) -> None:
    requests = [Request(prompt, NEW, 0.8, seed) for seed, prompt in enumerate(PROMPTS[:6])]
    alone, together = Engine(model, sizes()), Engine(model, sizes())
    expected = [run(alone, [(0, request)])[0].generated for request in requests]
    assert [s.generated for s in run(together, [(0, r) for r in requests])] == expected
    assert together.scheduler.counters.preemptions > 0
    again = [run(alone, [(0, Request(PROMPTS[4], NEW, 0.8, seed))])[0] for seed in range(3)]
    assert len({stream.generated for stream in again}) == 3


def test_tokens_are_drawn_by_temperature() -> None:
    shares = jnp.array([0.15, 0.5, 0.05, 0.3])
    rows = 4000
    logits, seeds = jnp.tile(jnp.log(shares), (rows, 1)), jnp.arange(rows)

    def drawn(temperature: float) -> np.ndarray:
        tokens = draw(logits, jnp.full(rows, temperature), seeds, seeds % 7)
        return np.bincount(tokens, minlength=4) / rows

    np.testing.assert_array_equal(drawn(0.0), [0, 1, 0, 0])
    np.testing.assert_allclose(drawn(1.0), shares, atol=0.03)
    squared = shares**2 / (shares**2).sum()
    np.testing.assert_allclose(drawn(0.5), squared, atol=0.03)


# The compiled step


def jitted_step_and_arguments(model: Llama) -> tuple[Any, tuple]:
    weights, structure = jax.tree.flatten(model)
    batch = Engine(model, sizes()).scheduler.batch(Plan())
    drawn = jnp.zeros(sizes().table_entries, jnp.int32)
    return jitted_step(structure), (weights, empty_store(TOY, sizes()), drawn, batch)


def test_the_step_is_compiled_once(model: Llama) -> None:
    """Whatever comes: idle steps, decoding alone, chunks, full and empty tables."""
    engine = Engine(model, ServingConfig(page_size=8, num_pages=13, max_requests=3, chunk_tokens=5))
    step = jitted_step(jax.tree.structure(model))
    before = step._cache_size()
    engine.warm_up()
    run(engine, [(0, Request(PROMPTS[3], 3)), (2, Request(b"", 9)), (40, Request(SYSTEM, 5, 0.5))])
    run(engine, [(0, Request(prompt, NEW)) for prompt in PROMPTS])
    assert engine.steps > 50
    assert step._cache_size() == before + 1


def test_the_step_copies_no_store(model: Llama) -> None:
    """The stores are donated, aliased to the results, and updated in place in every layer."""
    step, arguments = jitted_step_and_arguments(model)
    compiled = step.lower(*arguments).compile()
    text, keys = compiled.as_text(), arguments[1].keys
    assert keys.shape[0] == TOY.num_hidden_layers * sizes().num_pages
    shape = f"f32[{','.join(map(str, keys.shape))}]"
    assert text.count(shape) > 4
    assert not re.findall(rf"= {re.escape(shape)}\S* (?:copy|copy-start|transpose)\(", text)
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * keys.nbytes


def test_the_step_calls_the_kernels_on_a_gpu(model: Llama) -> None:
    """Lowered for CUDA, wherever we are: three calls, in the one loop over the layers."""
    step, arguments = jitted_step_and_arguments(model)
    text = step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(jax_baracuda_\w+)\(", text)
    assert sorted(calls) == [
        f"jax_baracuda_{op}" for op in ("append", "paged_decode", "paged_prefill")
    ]


def test_an_idle_step_writes_nothing(model: Llama) -> None:
    step, (weights, store, drawn, batch) = jitted_step_and_arguments(model)
    marked = jax.tree.map(lambda pages: pages + jnp.nan, store)
    store, drawn = step(weights, marked, drawn, batch)
    assert all(bool(jnp.isnan(pages).all()) for pages in store)
    assert ((drawn >= 0) & (drawn < TOY.vocab_size)).all()


# The command


@pytest.fixture(scope="module")
def checkpoint(model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    save_model(folder, model)
    return folder


def test_command_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], answers: dict[bytes, bytes]
) -> None:
    prompts = [b"def f(x):", b"x"]
    args = ["--checkpoint", str(checkpoint), "--max-new-tokens", str(NEW)]
    for name, size in dataclasses.asdict(sizes()).items():
        args += [f"--{name.replace('_', '-')}", str(size)]
    chosen = [word for prompt in prompts for word in ("--prompt", prompt.decode())]
    greedy = serve_cli.main([*args, *chosen, "--shared-prefix", "", "--temperature", "0"])
    assert greedy == [until(answers[prompt], Request(prompt, NEW)) for prompt in prompts]
    printed = capsys.readouterr().out
    assert printed.startswith(("  0 | ", "  1 | "))
    assert re.search(r"2 requests, \d+ tokens in .* tokens/s", printed)
    assert "preemptions" in printed
    assert "one step function, compiled in" in printed

    args += ["--requests", "6", "--prompt-bytes", "10", "--shared-prefix", "import os\n"]
    sampled = serve_cli.main(args)
    assert len(sampled) == 6
    assert all(1 <= len(answer) <= NEW for answer in sampled)
    assert not re.search(r"\b0 of them shared", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="exceed 64,"):
        serve_cli.main([*args, "--max-new-tokens", "64", "--prompt", "x" * 20])
    with pytest.raises(SystemExit, match="train one"):
        serve_cli.main(["--checkpoint", str(checkpoint / "nowhere")])


def test_a_terminal_shows_all_requests_and_keeps_their_texts(
    model: Llama, answers: dict[bytes, bytes]
) -> None:
    engine = Engine(model, sizes())
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, height=20)
    arrivals = [serve_cli.Arrival(0, Request(prompt, 6)) for prompt in PROMPTS[1:4]]
    with console.LiveDisplay(terminal, engine, len(arrivals)) as display:
        served = serve_cli.serve(engine, arrivals, display)
    shown = screen.getvalue()
    assert "3/3 requests" in shown
    assert "tokens/s" in shown
    for one in served:
        assert one.arrived < one.first_token <= one.ended
        assert console.shown(one.stream.answer, "").strip() in shown.replace("\n", "")


def test_what_is_shown_cannot_command_a_terminal() -> None:
    assert console.shown(b"a\tb\n\x1b[2J\xff") == "a   b⏎�[2J�"
