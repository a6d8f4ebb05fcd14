"""The engine of the training benchmark: steps of examples/llama on ours and on jax.nn's attention.

jax is not imported before the engine is made.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import rows as result_rows
import turns

# How the example names the attention of an implementation.
ATTENTION = {
    "jax_cudnn": "jax_cudnn",
    "jax_baracuda": "flash_attention",
    "jax_nn": "jax_nn",
}
SAMPLES = 5


@dataclasses.dataclass(frozen=True)
class TrainingCell:
    """A preset of the example, with other windows."""

    length: int
    batch: int
    remat: str
    steps: int
    preset: str = "medium"

    @property
    def name(self) -> str:
        """As in --cells."""
        return f"{self.length}-{self.remat}"

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @property
    def warm_up(self) -> int:
        """Steps before those that are timed: two or more, so that the samples are alike."""
        return 2 + (self.steps - 2) % SAMPLES


def attention_flops(length: int, layers: int, heads: int, head_dim: int) -> float:
    """Of a token in a training step under a causal mask.

    12 L H D S without a mask: two products of 2 H D S forward, and twice as many backward; S keys
    at the end of a window are half as many on the average.
    """
    return 12 * layers * heads * head_dim * length / 2


class Training:
    """A run: its state, bits per byte before every step, and milliseconds a step of every sample.

    Within a sample steps are queued ahead of the device, so that it is the device's time.
    """

    def __init__(self, jax: Any, program: Any, state: Any, windows: list[Any], steps: int) -> None:
        self.jax, self.program, self.state, self.windows = jax, program, state, windows
        self.steps = steps  # of a sample
        self.losses: list[Any] = []
        self.times: list[float] = []

    def advance(self, steps: int) -> float:
        """The seconds of so many steps."""
        began = time.perf_counter()
        for _ in range(steps):
            self.state, loss = self.program(self.state, self.windows[len(self.losses)])
            self.losses.append(loss)
        self.jax.block_until_ready(self.state.step)
        return time.perf_counter() - began

    def sample(self) -> None:
        """Takes the time of some steps."""
        self.times.append(1e3 * self.advance(self.steps) / self.steps)


class TrainingEngine:
    """Trains from one seed on one sequence of windows, and takes the time and the losses."""

    def __init__(self) -> None:
        # Taken at once whatever the caller's environment says. A share that grows is in pieces,
        # none of which is given back: after other cells none had room for a step without remat.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        fraction = "0.6" if turns.shared() else "0.92"
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
        sys.path.insert(0, str(result_rows.ROOT / "examples"))
        import jax

        from llama import config, data, model, training

        self.jax, self.config, self.data = jax, config, data
        self.model, self.training = model, training
        self.programs: dict[Any, Any] = {}
        self.corpus: Any = None

    def about(self) -> dict[str, Any]:
        import flax
        import jaxlib

        import jax_baracuda

        versions = {
            "jax_baracuda": jax_baracuda.__version__,
            "jax": self.jax.__version__,
            "jaxlib": jaxlib.__version__,
            "flax": flax.__version__,
        }
        return {"gpu": self.jax.devices()[0].device_kind, "versions": versions}

    def settings(self, impl: str, cell: TrainingCell) -> tuple[Any, Any]:
        """The example's sizes of the model, and of the run."""
        model, run = self.config.PRESETS[cell.preset]
        longest = max(model.max_position_embeddings, cell.length)
        return dataclasses.replace(model, max_position_embeddings=longest), dataclasses.replace(
            run,
            steps=cell.steps,
            batch_size=cell.batch,
            context=cell.length,
            # With a few steps of warm-up the loss jumps at the example's rate, and curves part.
            learning_rate=run.learning_rate / 8,
            warmup_steps=cell.steps // 4,
            attention=ATTENTION[impl],
            remat=cell.remat,
        )

    def prepare(self, jobs: list[tuple[str, TrainingCell]]) -> None:
        """Compiles the programs side by side; errors show in measure."""
        starts = dict.fromkeys(self.settings(*job)[0] for job in jobs)

        def build(job: Any) -> None:
            try:
                self.programs[job] = (
                    self.compile_start(job) if job in starts else self.compile(*job)
                )
            except Exception as error:
                self.programs[job] = error

        with concurrent.futures.ThreadPoolExecutor(max(1, len(jobs))) as pool:
            list(pool.map(build, [*starts, *jobs]))
        self.corpus = self.data.load_corpus().train

    def compile_start(self, model: Any) -> Any:
        """The state that every implementation starts from, as a program."""
        config = self.config.TrainConfig()  # of which that state does not depend
        network = self.model.create_model

        def start() -> Any:
            return self.training.create_train_state(network(model, config.seed), config)

        return self.jax.jit(start).lower().compile()

    def compile(self, impl: str, cell: TrainingCell) -> tuple[Any, float]:
        """A training step, and the seconds that its compilation took."""
        jax, training = self.jax, self.training
        began = time.perf_counter()
        model, run = self.settings(impl, cell)
        state = jax.eval_shape(
            lambda: training.create_train_state(self.model.create_model(model, run.seed), run)
        )
        windows = jax.ShapeDtypeStruct((cell.batch, cell.length + 1), jax.numpy.uint8)
        step = training.train_step.trace(state, windows, run).lower().compile()
        return step, time.perf_counter() - began

    def compiled(self, job: Any) -> Any:
        """What ``prepare`` made."""
        program = self.programs[job]
        if isinstance(program, Exception):
            raise program
        return program

    def measure(self, impls: list[str], cell: TrainingCell) -> dict[str, dict[str, Any] | str]:
        """All steps of the cell, samples of the implementations in turns: numbers or an error."""
        answers: dict[str, dict[str, Any] | str] = {}
        runs: dict[str, Training] = {}

        def attempt(impl: str, work: Callable[[str], Any]) -> None:
            if impl not in answers:
                try:
                    work(impl)
                except Exception as error:
                    answers[impl] = str(error) or repr(error)
                    runs.pop(impl, None)

        def start(impl: str) -> None:
            runs[impl] = self.start(impl, cell)

        def finish(impl: str) -> None:
            answers[impl] = self.numbers(impl, runs.pop(impl), cell)

        for work in (start, *SAMPLES * [lambda impl: runs[impl].sample()], finish):
            for impl in impls:
                attempt(impl, work)
        return answers

    def start(self, impl: str, cell: TrainingCell) -> Training:
        """A run after its warm-up."""
        program, _ = self.compiled((impl, cell))
        state = self.compiled(self.settings(impl, cell)[0])()
        seed = self.config.TrainConfig().seed
        windows = [
            self.jax.device_put(
                self.data.train_batch(self.corpus, cell.batch, cell.length, seed=seed, step=step)
            )
            for step in range(cell.steps)
        ]
        run = Training(self.jax, program, state, windows, (cell.steps - cell.warm_up) // SAMPLES)
        run.advance(cell.warm_up)
        return run

    def numbers(self, impl: str, run: Training, cell: TrainingCell) -> dict[str, Any]:
        """What belongs in the row of a run that is over."""
        program, compile_seconds = self.compiled((impl, cell))
        parameters = sum(leaf.size for leaf in self.jax.tree.leaves(run.state.model))
        losses = [float(loss) for loss in run.losses]
        if not all(map(math.isfinite, losses)):
            raise RuntimeError(f"the loss is not finite: {losses}")
        ms = statistics.median(run.times)
        flops = cell.tokens * self.token_flops(cell, parameters)
        return {
            "ms": ms,
            "fastest": min(run.times),
            "slowest": max(run.times),
            "tflops": flops / ms / 1e9,
            "tokens_per_second": 1e3 * cell.tokens / ms,
            "parameters": parameters,
            "gb": memory(program),
            "compile_seconds": compile_seconds,
            "losses": [round(loss, 5) for loss in losses],
        }

    def token_flops(self, cell: TrainingCell, parameters: int) -> float:
        """Model flops of a token: 6 a parameter, and the attention's."""
        model, _ = self.settings("jax_baracuda", cell)
        attention = attention_flops(
            cell.length, model.num_hidden_layers, model.num_attention_heads, model.head_dim
        )
        return 6 * parameters + attention

    def release(self) -> None:
        """Nothing is kept between measurements but programs."""


def memory(program: Any) -> float | None:
    """GB of a compiled program's operands and temporaries."""
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    return (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes) / 1e9
