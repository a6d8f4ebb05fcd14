"""The serving engine: the scheduler's steps, run on the device one ahead of the host."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .config import ServingConfig
from .model import Llama
from .paged import empty_store, jitted_step
from .scheduler import Plan, Request, Scheduler, Stream


class Engine:
    """Continuous batching: submit requests at any time, and call ``step`` while it ``is_busy``.

    >>> engine = Engine(create_model(ModelConfig(), seed=0), ServingConfig())
    >>> stream = engine.submit(Request(b"import ", max_new_tokens=8))
    >>> while engine.is_busy:
    ...     news = engine.step()
    >>> len(stream.generated)
    8

    The token that a step draws goes into the next one on the device. So the host plans a step, and
    reads the results of the one before, while the device computes; that a request has stopped is
    known one step late, and the row that it had in that step is dropped.
    """

    def __init__(self, model: Llama, config: ServingConfig) -> None:
        longest = min(config.max_length, model.config.max_position_embeddings)
        config = dataclasses.replace(config, max_length=longest)
        self._weights, structure = jax.tree.flatten(model)
        self._step = jitted_step(structure)
        self.scheduler = Scheduler(config)
        self.steps = 0
        self._store = empty_store(model.config, config)
        self._drawn = jnp.zeros(config.table_entries, jnp.int32)
        self._ahead: tuple[Plan, Array] | None = None

    def warm_up(self) -> float:
        """Compiles the step, and runs it on no request. Returns the seconds that it took."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(Plan()))
        return time.perf_counter() - began

    def submit(self, request: Request) -> Stream:
        """Puts a request in the queue. Raises ValueError if it could never be served."""
        return self.scheduler.submit(request)

    @property
    def is_busy(self) -> bool:
        return bool(self._ahead or self.scheduler.running or self.scheduler.waiting)

    def step(self) -> list[tuple[Stream, int]]:
        """Starts a step. Returns the streams that the one before let grow, and their new tokens."""
        plan, before = self.scheduler.plan(), self._ahead
        self._ahead = None if plan.is_empty else (plan, self._run(plan))
        self.steps += 1
        if before is None:
            return []
        return self.scheduler.collect(before[0], np.asarray(before[1]))

    def _run(self, plan: Plan) -> Array:
        batch = self.scheduler.batch(plan)
        self._store, self._drawn = self._step(self._weights, self._store, self._drawn, batch)
        self._drawn.copy_to_host_async()
        return self._drawn
