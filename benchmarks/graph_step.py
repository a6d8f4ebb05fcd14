"""Time of a decode step in one jitted loop, by how much of it XLA puts into CUDA graphs.

    python benchmarks/graph_step.py

Four layers append a row to their caches and call flash_decode, 64 steps in a ``while_loop``; one
request, 32 query heads, 8 key/value heads of 128, 1024 rows grown by 64. Each setting of XLA's
flags runs in a process of its own, and all must give the same bits.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import rows as result_rows
import turns

STEPS, LAYERS = 64, 4
SIZES = {"batch": 1, "kv_heads": 8, "query_heads": 32, "head_dim": 128}
ROWS = 1024


def measure(samples: int) -> dict[str, Any]:
    """Runs the loop in this process: milliseconds a step and a digest of the results."""
    import jax
    import jaxlib
    import numpy as np

    import jax_baracuda
    from jax_baracuda.testing import loops

    sizes = SIZES | {"capacity": ROWS + STEPS, "layers": LAYERS, "lengths": [ROWS]}
    loop = loops.decode_while(functools.partial(jax_baracuda.flash_decode), STEPS)
    loop = loop.lower(jax.eval_shape(lambda: loops.loop_inputs(**sizes))).compile()
    times = []
    with turns.turn():
        state = loops.loop_inputs(**sizes)
        for _ in range(3):  # a graph is built in the first runs
            result = jax.block_until_ready(loop(state))
        for _ in range(samples):
            begin = time.perf_counter()
            jax.block_until_ready(loop(state))
            times.append((time.perf_counter() - begin) / STEPS * 1e3)
    return {
        "ms": statistics.median(times),
        "digest": hashlib.sha256(np.asarray(result).tobytes()).hexdigest(),
        "gpu": jax.devices()[0].device_kind,
        "versions": {
            "jax_baracuda": jax_baracuda.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
        },
    }


def start(flags: str, samples: int) -> subprocess.Popen[str]:
    """A process that measures with these flags of XLA, and prints what it found."""
    own = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return subprocess.Popen(
        [sys.executable, __file__, "--child", "--samples", str(samples)],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        text=True,
    )


def config_of(graph: str, flags: str) -> dict[str, Any]:
    """What a row was measured in."""
    return {
        "B": 1,
        "Hq": 32,
        "Hkv": 8,
        "K": ROWS,
        "D": 128,
        "dtype": "bfloat16",
        "layers": LAYERS,
        "steps": STEPS,
        "graph": graph,
        "xla_flags": flags,
    }


def main() -> int:
    """Runs every setting and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="default: results/<gpu>/decode_step.json; '-' writes no file",
    )
    parser.add_argument("--commit", help="the commit for the rows, where git is not there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.samples)))
        return 0

    from jax_baracuda.testing.loops import GRAPH_FLAGS

    answers: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.NamedTemporaryFile() as file:
        os.environ.setdefault(turns.FILE, file.name)  # they start together, and measure by turns
        processes = [start(flags, options.samples) for flags in GRAPH_FLAGS.values()]
        printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return 1
    for (graph, flags), text in zip(GRAPH_FLAGS.items(), printed, strict=True):
        answer = json.loads(text.splitlines()[-1])
        answers[graph] = answer
        print(f"{graph:>8}: {answer['ms'] * 1e3:8.1f} us a step  {flags}", flush=True)
        run = result_rows.describe_run(answer["gpu"], answer["versions"], options.commit)
        config = config_of(graph, flags)
        numbers = {"ms": answer["ms"]}
        rows.append(result_rows.row("flash_decode", "step", "jax_baracuda", config, numbers, run))
        if str(options.out) != "-":
            gpu = answer["gpu"].lower().split()[-1]
            result_rows.write(options.out or result_rows.RESULTS / gpu / "decode_step.json", rows)

    first = answers["none"]
    different = [graph for graph, answer in answers.items() if answer["digest"] != first["digest"]]
    if different:
        print(f"other results than without graphs: {different}", file=sys.stderr)
    return int(bool(different))


if __name__ == "__main__":
    raise SystemExit(main())
