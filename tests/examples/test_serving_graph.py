"""The serving step in a CUDA graph: XLA captures it once, and every step launches that graph."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from jax_baracuda.testing import loops

STEPS = 20  # that are looked at, after those that capture


def run_engine(folder: Path) -> None:
    """Serves requests of all kinds, then counts the graph calls of ``STEPS`` busy steps.

    XLA_FLAGS is the caller's. Writes ``answers.json`` and ``calls.json``.
    """
    from llama.config import ModelConfig, ServingConfig
    from llama.model import create_model
    from llama.scheduler import Request
    from llama.serving import Engine

    engine = Engine(
        create_model(ModelConfig(initializer_range=0.5), seed=1),
        ServingConfig(num_pages=24, max_requests=4, chunk_tokens=24),
    )
    engine.warm_up()
    system = b"# All of these begin with the same line, which is computed once.\n"
    requests = [Request(b"y", 4 * STEPS, temperature=0.7, stop=-1)]
    requests += [Request(system + b"x" * n, 4 + n // 8, stop=-1) for n in range(0, 80, 8)]
    streams = [engine.submit(request) for request in requests]
    for _ in range(4):
        engine.step()
    with jax.profiler.trace(folder / "profile"):
        for _ in range(STEPS):
            engine.step()
        jax.block_until_ready(engine._drawn)
    while engine.is_busy:
        engine.step()
    answers = [stream.generated.decode("latin-1") for stream in streams]
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "calls.json").write_text(json.dumps(graph_calls(folder / "profile")))


def graph_calls(folder: Path) -> Counter[str]:
    """How often each function of the driver that is about graphs was called, in a profile."""
    (file,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return Counter(event["name"] for event in events if event.get("name", "").startswith("cuGraph"))


def serve_with(flags: str, folder: Path) -> tuple[list[str], Counter[str]]:
    """``run_engine`` in a process with these XLA flags, dumping to the folder."""
    folder.mkdir()
    profiled = "--xla_enable_command_buffers_during_profiling=true"
    dumped = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    flags = f"{flags} {dumped}" + (f" {profiled}" if jax.default_backend() == "gpu" else "")
    process = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    answers, calls = (
        json.loads((folder / name).read_text()) for name in ("answers.json", "calls.json")
    )
    return answers, Counter(calls)


@pytest.mark.gpu
@pytest.mark.long
def test_the_captured_step_is_used_again(tmp_path: Path) -> None:
    captured = "body"  # jax 0.11.2 leaves the scan over layers out of the graph, whatever the flags
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(serve_with, loops.GRAPH_FLAGS[graphs], tmp_path / graphs)
            for graphs in ("none", captured)
        ]
    (plain, _), (answers, calls) = (run.result() for run in runs)
    assert answers == plain
    assert len(set(answers)) == len(answers)

    thunks = loops.thunks(tmp_path / captured, "jit_serving_step")
    assert any(kind == "kCommandBuffer" for kind, _ in thunks), thunks
    assert not any(kind == "kCustomCall" and not inside for kind, inside in thunks), thunks
    # Requests came and ended in these steps: the graph stayed.
    launched = sum(n for name, n in calls.items() if name.startswith("cuGraphLaunch"))
    made = sum(n for name, n in calls.items() if name.startswith("cuGraphInstantiate"))
    assert launched >= STEPS, calls
    assert made == 0, calls


def test_the_run_that_is_looked_at_runs(tmp_path: Path) -> None:
    """The part of the test above that needs no GPU; the profile has no graphs here."""
    answers, _ = serve_with("", tmp_path / "run")
    assert [len(answer) for answer in answers] == [4 * STEPS, *range(4, 14)]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    run_engine(Path(sys.argv[1]))
