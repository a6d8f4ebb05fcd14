"""examples/quantise.py: a trained model rounded to four bits, saved, loaded and generating."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generate as generate_cli
import quantise as quantise_cli
import train as train_cli
from jax_baracuda.nnx import Int4Linear, quantize_model
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4
from llama.awq import awq_settings, awq_tensors
from llama.cache import empty_cache
from llama.checkpoint import load_model, save_model
from llama.config import PRESETS, ModelConfig, TrainConfig
from llama.decoding import generate, pad_prompts
from llama.model import create_model

SIZES = ModelConfig(
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    head_dim=24,
    max_position_embeddings=64,
)
RUN = TrainConfig(
    steps=30, batch_size=8, context=32, warmup_steps=4, validation_windows=64, save_every=30
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", (SIZES, RUN))
        train_cli.main(["--out", str(folder)])
    return folder


class Rounded(NamedTuple):
    folder: Path
    before: float
    after: float
    printed: str


@pytest.fixture(scope="module")
def rounded(trained: Path) -> Rounded:
    """By the command line, as it is without options."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        before, after = quantise_cli.main(["--checkpoint", str(trained)])
    return Rounded(trained.with_name("toy-int4"), before, after, printed.getvalue())


def test_four_bits_cost_little(rounded: Rounded) -> None:
    _, before, after, printed = rounded
    assert before < 6.5  # it has learned
    assert after != before
    assert abs(after - before) < 0.05
    for bits in (before, after):
        assert f"{bits:.3f} bits per byte (perplexity {2**bits:.3f} a byte)" in printed
    assert f"generate.py --checkpoint {rounded.folder}" in printed


def test_options(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise_cli, "report", lambda what, model, settings: 0.0)
    options = ["--dtype", "bfloat16", "--symmetric", "--group-size", "64", "--out", str(tmp_path)]
    quantise_cli.main(["--checkpoint", str(trained), *options])
    model = load_model(tmp_path)
    layer = model.layers.mlp.up_proj
    assert model.config.dtype == layer.dtype == layer.scales.dtype == "bfloat16"
    assert layer.group_size == 64
    assert (layer.zeros[:, :2, :160] == 8).all()


def test_a_saved_model_is_the_same_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    model = quantize_model(load_model(trained), group_size=64)
    layer = model.layers.self_attn.q_proj
    model.layers.self_attn.q_proj = Int4Linear(layer.weight, jnp.ones((2, 96)), dtype=layer.dtype)
    save_model(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }
    loaded = load_model(tmp_path)
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, model, loaded)


def test_generation_is_that_of_the_rounded_matrices(trained: Path, rounded: Rounded) -> None:
    args = ["--prompt", "def f(", "--max-new-tokens", "20", "--temperature", "0"]
    got = generate_cli.main(["--checkpoint", str(rounded.folder), *args])
    int4_model, dense = load_model(rounded.folder), load_model(trained)
    for part in ("self_attn", "mlp"):
        for name, layer in vars(getattr(int4_model.layers, part)).items():
            if isinstance(layer, Int4Linear):
                matrices = jax.vmap(lambda weight: weight.dequantize())(layer.weight)
                getattr(getattr(dense.layers, part), name).kernel[...] = matrices
    save_model(trained.with_name("dense"), dense)
    want = generate_cli.main(["--checkpoint", str(trained.with_name("dense")), *args])
    np.testing.assert_array_equal(got, want)


def test_generation_calls_the_kernels() -> None:
    """Lowered for CUDA, wherever we are: seven products in each of the two scans over layers."""
    config = ModelConfig(**vars(SIZES) | {"dtype": "bfloat16"})
    model = quantize_model(create_model(config, seed=0), group_size=32)
    tokens, lengths = pad_prompts([b"def f(", b"x"])
    cache = empty_cache(config, 2, 16)
    traced = generate.trace(model, cache, tokens, lengths, jax.random.key(0), steps=8)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [text.count(f"@jax_baracuda_{op}(") for op in ("int4_matmul", "flash_decode")]
    assert calls == [14, 1]


@pytest.mark.parametrize("group_size", [32, 64])
def test_the_words_of_a_checkpoint_are_written_as_they_were_read(group_size: int) -> None:
    raw = int4.make_raw_weight("awq_gemm", 192, 72, group_size)
    written = awq_tensors(raw.convert(), group_size)
    assert set(written) == set(raw.arrays)
    for name, array in raw.arrays.items():
        np.testing.assert_array_equal(written[name], array)


def test_what_awq_has_no_words_for() -> None:
    def weight(rows: int, columns: int, group_size: int) -> Int4Weight:
        return Int4Weight.quantize(jnp.ones((rows, columns)), group_size=group_size)

    order = int4.make_raw_weight("gptq_act_order", 128, 64, 64).convert()
    for weights in ([weight(64, 12, 32)], [weight(64, 8, 32), weight(256, 8, 64)], [order]):
        with pytest.raises(ValueError, match="does not fit AWQ's files"):
            awq_settings(weights)
    assert awq_settings([weight(32, 8, -1), weight(256, 8, 32)])["group_size"] == 32


def test_without_a_run() -> None:
    with pytest.raises(SystemExit, match="train one"):
        quantise_cli.main(["--checkpoint", "/nowhere"])
