"""The Llama example trains the same with flash_attention and jax.nn, with and without remat."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train as train_cli
from llama import data
from llama.config import (
    PRESETS,
    ModelConfig,
    Remat,
    TrainConfig,
    context_bytes,
    logits_bytes,
)
from llama.model import Llama, create_model
from llama.training import TrainState, create_train_state, loss_fn, train_step

MODEL = dataclasses.replace(PRESETS["tiny"][0], num_hidden_layers=2)
RUN = TrainConfig(steps=30, batch_size=2, context=64, warmup_steps=5)
H200_BYTES = 141e9
MLP_PRODUCTS = 9  # gate, up and down, each once forward and twice backward


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """float32 products stay float32 on a GPU, where the default is TF32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return data.load_corpus().train


def loss_curve(source: np.ndarray, model: ModelConfig = MODEL, **changes: str) -> np.ndarray:
    """Losses in bits a byte, one a step, of a run from the same start on the same windows."""
    config = dataclasses.replace(RUN, **changes)
    state = create_train_state(create_model(model, config.seed), config)
    losses = []
    for step in range(config.steps):
        windows = data.train_batch(source, config.batch_size, config.context, seed=0, step=step)
        state, loss = train_step(state, windows, config)
        losses.append(float(loss))
    return np.array(losses)


def test_loss_curve_is_that_of_jax_nn(source: np.ndarray) -> None:
    ours = loss_curve(source, attention="flash_attention")
    theirs = loss_curve(source, attention="jax_nn")
    assert theirs[-5:].mean() < theirs[0] - 2  # it learns: the curve is one
    # Rounding differs, and every step passes the difference on.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_bfloat16_loss_curve_is_that_of_jax_nn(source: np.ndarray) -> None:
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    ours = loss_curve(source, model, attention="flash_attention", remat="save_attention")
    theirs = loss_curve(source, model, attention="jax_nn", remat="save_attention")
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.long
def test_loss_curve_is_that_of_cudnn(source: np.ndarray) -> None:
    model = dataclasses.replace(MODEL, dtype="bfloat16", head_dim=64)
    ours = loss_curve(source, model, attention="flash_attention", remat="save_products")
    theirs = loss_curve(source, model, attention="jax_cudnn", remat="save_products")
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)


@pytest.fixture(scope="module")
def loss_and_gradients(source: np.ndarray) -> Callable[[Remat], tuple[jax.Array, Llama]]:
    windows = data.train_batch(source, 2, 64, seed=0, step=0)
    model = create_model(MODEL, seed=0)

    @functools.cache
    def compute(remat: Remat) -> tuple[jax.Array, Llama]:
        config = dataclasses.replace(RUN, remat=remat)
        return jax.jit(jax.value_and_grad(loss_fn), static_argnums=2)(model, windows, config)

    return compute


@pytest.mark.parametrize("remat", ["save_products", "save_attention", "full"])
def test_remat_changes_neither_loss_nor_gradients(
    loss_and_gradients: Callable[[Remat], tuple[jax.Array, Llama]], remat: Remat
) -> None:
    (want_loss, want), (loss, gradients) = loss_and_gradients("none"), loss_and_gradients(remat)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def lowered_step(preset: str, **changes: str) -> str:
    """One training step of a preset as StableHLO for CUDA; no array is made."""
    model, run = PRESETS[preset]
    config = dataclasses.replace(run, **changes)
    state = jax.eval_shape(lambda: create_train_state(create_model(model, 0), config))
    windows = jax.ShapeDtypeStruct((config.batch_size, config.context + 1), jnp.uint8)
    traced = train_step.trace(state, windows, config)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("remat", "forward_calls", "products"),
    [
        ("none", 1, MLP_PRODUCTS),
        ("save_products", 1, MLP_PRODUCTS),
        ("save_attention", 1, MLP_PRODUCTS + 2),  # gate and up; nothing needs down again
        ("full", 2, MLP_PRODUCTS + 2),
    ],
)
def test_what_is_kept_is_not_computed_again(remat: str, forward_calls: int, products: int) -> None:
    """Lowered for CUDA, wherever we are: how often each stands in the loops over layers."""
    text = lowered_step("small", remat=remat)
    assert text.count("@jax_baracuda_flash_attention(") == forward_calls
    assert text.count("@jax_baracuda_flash_attention_backward(") == 1
    width = PRESETS["small"][0].intermediate_size
    assert sum(f"x{width}x" in line for line in text.splitlines() if "dot_general" in line) == (
        products
    )


def test_long_preset_makes_no_array_of_context_squared_elements() -> None:
    sizes = PRESETS["long"]
    context = sizes[1].context
    squared = re.compile(rf"tensor<(?:\d+x)*{context}x{context}x\w+>")
    assert not squared.search(lowered_step("long"))
    theirs = set(squared.findall(lowered_step("long", attention="jax_nn")))
    largest = max(array_bytes(array) for array in theirs)
    assert largest == logits_bytes(*sizes)
    # The logits and their gradient exist at the same time; the model's own arrays come on top.
    assert 2 * logits_bytes(*sizes) > H200_BYTES
    assert context_bytes(*sizes) < H200_BYTES / 1000


def array_bytes(array: str) -> int:
    """Bytes of "tensor<8x16xf32>"."""
    *shape, dtype = array.removeprefix("tensor<").removesuffix(">").split("x")
    bits = int(re.sub(r"\D", "", dtype))
    return math.prod(map(int, shape)) * -(-bits // 8)


def test_command_line_chooses_attention_and_remat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", (MODEL, RUN))
    chosen = []

    def no_step(
        state: TrainState, windows: np.ndarray, config: TrainConfig
    ) -> tuple[TrainState, float]:
        chosen.append((config.attention, config.remat))
        return state._replace(step=state.step + 1), 0.0

    monkeypatch.setattr(train_cli, "train_step", no_step)
    monkeypatch.setattr(train_cli, "evaluate", lambda *_: 0.0)
    run = ["--out", str(tmp_path)]
    train_cli.main([*run, "--steps", "1", "--attention", "jax_nn", "--remat", "full"])
    train_cli.main([*run, "--steps", "2", "--resume"])
    train_cli.main([*run, "--steps", "3", "--resume", "--attention", "flash_attention"])
    train_cli.main([*run, "--steps", "1"])
    assert chosen == [
        ("jax_nn", "full"),
        ("jax_nn", "full"),
        ("flash_attention", "full"),
        ("flash_attention", "none"),
    ]


def test_help_says_what_the_long_preset_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_cli.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "137 GB of float32 logits a layer" in printed
    assert "69 MB a layer" in printed
