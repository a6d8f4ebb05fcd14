"""load_checkpoint holds the tensors of one layer at a time."""

import json
import weakref

import jax
import numpy as np
from safetensors.numpy import save_file

from jax_baracuda._src.int4 import checkpoint
from jax_baracuda.testing import int4

LAYERS = 6


def test_one_layer_at_a_time(tmp_path, monkeypatch):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    stored = {}
    for index in range(LAYERS):
        raw = int4.make_raw_weight("gptq_act_order", 128, 64, 64, seed=index)
        stored |= {f"layers.{index}.{name}": array for name, array in raw.arrays.items()}
    save_file(stored, tmp_path / "model.safetensors")

    alive: set[str] = set()
    most = 0
    read = checkpoint._Shards.read

    def watched(shards, name):
        nonlocal most
        tensor = np.array(read(shards, name))  # of its own, so that it can be watched
        alive.add(name)
        weakref.finalize(tensor, alive.discard, name)
        most = max(most, len({other.split(".")[1] for other in alive}))
        return tensor

    monkeypatch.setattr(checkpoint._Shards, "read", watched)
    loaded = checkpoint.load_checkpoint(
        tmp_path, place=lambda name, value: jax.block_until_ready(value), progress=False
    )
    assert len(loaded) == LAYERS
    # The layer before is let go when the next is there.
    assert most <= 2
    del loaded
