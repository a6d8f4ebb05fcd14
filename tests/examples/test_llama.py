"""The Llama example: data, network, training, checkpoints and generation, at toy sizes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_llama import numpy_llama
from safetensors.numpy import load_file, save_file

import generate as generate_cli
import train as train_cli
from llama import data
from llama.cache import append_token, empty_cache
from llama.checkpoint import load_model, load_training, save_model
from llama.config import PRESETS, ModelConfig, TrainConfig
from llama.decoding import Sampling, decode_step, generate, pad_prompts, prefill, sample
from llama.model import Llama, cast_model, create_model
from llama.ops import apply_rope
from llama.training import create_train_state

# Large initial weights: logits far apart, so that greedy streams are lively and ties impossible.
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
TOY_RUN = TrainConfig(
    steps=40, batch_size=8, context=32, warmup_steps=4, validation_windows=16, save_every=20
)
PROMPTS = [b"def f(x):", b"", b"import jax.numpy as jnp\n", b"x"]


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """float32 products stay float32 on a GPU, where the default is TF32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model() -> Llama:
    return create_model(TOY, seed=1)


def full_logits(model: Llama, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, tokens: model(tokens))(model, jnp.asarray(tokens)))


def run_generate(model: Llama, prompts: list[bytes], steps: int, **options: object) -> np.ndarray:
    tokens, lengths = pad_prompts(prompts)
    cache = empty_cache(model.config, len(prompts), tokens.shape[1] + steps)
    key = jax.random.key(0)
    return np.asarray(generate(model, cache, tokens, lengths, key, steps=steps, **options)[0])


# Data


def write_sources(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")


def test_files_keep_their_side_of_the_split_when_others_come(tmp_path: Path) -> None:
    names = [f"package/module_{i}.py" for i in range(100)]
    write_sources(tmp_path, names)
    before = data.load_corpus(tmp_path)
    write_sources(tmp_path, ["a.py", "test/b.py", "site-packages/c.py"])
    after = data.load_corpus(tmp_path)

    def files(side: np.ndarray) -> set[bytes]:
        return set(side.tobytes().split(b"\0")) - {b""}

    assert len(files(before.train) | files(before.validation)) == 100
    assert 0 < len(files(before.validation)) < 20
    assert not files(after.train) & files(after.validation)
    added = files(after.train) | files(after.validation)
    assert added - files(before.train) - files(before.validation) == {b"# a.py\n"}
    assert files(before.validation) <= files(after.validation)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    source = np.arange(200, dtype=np.uint8)
    batches = [data.train_batch(source, 4, 16, seed=s, step=t) for s, t in [(0, 5), (0, 5), (0, 6)]]
    assert batches[0].shape == (4, 17)
    np.testing.assert_array_equal(np.diff(batches[0].astype(int)), 1)
    np.testing.assert_array_equal(batches[0], batches[1])
    assert (batches[0] != batches[2]).any()


def test_validation_windows_span_the_data() -> None:
    source = np.arange(200, dtype=np.uint8)
    batches = data.validation_batches(source, 3, 16, windows=10)
    assert batches.shape == (3, 3, 17)
    assert batches[0, 0, 0] == 0
    assert batches[-1, -1, -1] == 199
    with pytest.raises(ValueError, match="200 bytes"):
        data.validation_batches(source, 64, 16, windows=64)


# Network


@pytest.mark.parametrize("tied", [False, True])
def test_saved_model_is_a_hugging_face_llama(tmp_path: Path, tied: bool) -> None:
    config = dataclasses.replace(TOY, tie_word_embeddings=tied)
    model = create_model(config, seed=2)
    save_model(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not tied
    tokens = np.random.default_rng(0).integers(0, 256, (1, 20))
    want = numpy_llama(tensors, config, tokens[0])
    np.testing.assert_allclose(full_logits(model, tokens)[0], want, atol=1e-3, rtol=1e-4)


def test_rope_scores_depend_on_distance_alone() -> None:
    q, k = np.random.default_rng(0).normal(size=(2, 1, 16)).astype(np.float32)

    def score(i: int, j: int) -> float:
        at = [apply_rope(x, jnp.int32(p), theta=1e4) for x, p in ((q, i), (k, j))]
        return float((at[0] * at[1]).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_presets_fit_their_context() -> None:
    for model_config, run in PRESETS.values():
        assert run.context <= model_config.max_position_embeddings
    with pytest.raises(ValueError, match="num_attention_heads=4"):
        ModelConfig(num_key_value_heads=3)


# Training and checkpoints


@pytest.fixture
def toy_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    model_config = dataclasses.replace(TOY, initializer_range=0.05, tie_word_embeddings=True)
    monkeypatch.setitem(PRESETS, "tiny", (model_config, TOY_RUN))


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """Where a sum has one order: a GPU adds an embedding's gradients as they come."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.mark.usefixtures("toy_preset", "on_cpu")
def test_training_lowers_the_validation_loss_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    before, after = train_cli.main(["--out", str(straight)])
    assert 7 < before < 9  # 8 bits a byte is no knowledge at all
    assert after < before - 1.5

    def until_the_power_fails(*args: Any, step: int, **options: Any) -> np.ndarray:
        if step == 25:
            raise OSError("no power")
        return data.train_batch(*args, step=step, **options)

    monkeypatch.setattr(train_cli, "train_batch", until_the_power_fails)
    with pytest.raises(OSError, match="no power"):
        train_cli.main(["--out", str(halves)])
    assert int(load_training(halves)[0].step) == 20
    monkeypatch.setattr(train_cli, "train_batch", data.train_batch)
    train_cli.main(["--resume", "--out", str(halves)])
    (want, config), (got, resumed) = load_training(straight), load_training(halves)
    assert config == resumed == TOY_RUN
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_run_may_be_shorter_than_the_warm_up(steps: int) -> None:
    config = TrainConfig(steps=steps, warmup_steps=100)
    assert int(create_train_state(create_model(TOY, seed=0), config).step) == 0


def test_checkpoint_round_trip_is_exact(tmp_path: Path, model: Llama) -> None:
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, model, loaded)


def test_wrong_checkpoints_say_what_is_wrong(tmp_path: Path, model: Llama) -> None:
    save_model(tmp_path, model)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"no tensor 'model\.norm\.weight'"):
        load_model(tmp_path)
    save_file(tensors | {"model.norm.weight": norm[:5]}, file)
    with pytest.raises(ValueError, match=r"norm.*\(5,\).*\(32,\)"):
        load_model(tmp_path)
    config = tmp_path / "config.json"
    settings = json.loads(config.read_text())
    for change, complaint in [
        ({"model_type": "gpt2"}, "not a Llama"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "plain rotary"),
        ({"attention_bias": True}, "biases"),
    ]:
        config.write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=complaint):
            load_model(tmp_path)


# Generation


def test_greedy_stream_is_that_of_jax_nn_and_of_the_full_forward_pass(model: Llama) -> None:
    steps = 24
    ours = run_generate(model, PROMPTS, steps, attention="flash_decode")
    theirs = run_generate(model, PROMPTS, steps, attention="jax_nn")
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > steps // 2  # a lively stream: equality means something

    tokens, lengths = pad_prompts(PROMPTS)
    text = np.pad(tokens, ((0, 0), (0, steps)))
    for b, n in enumerate(lengths):
        text[b, n : n + steps] = ours[b]
    likeliest = full_logits(model, text).argmax(-1)
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(likeliest[b, n - 1 : n - 1 + steps], ours[b])


@pytest.mark.parametrize("attention", ["flash_decode", "jax_nn"])
def test_cached_decoding_gives_the_full_forward_logits(model: Llama, attention: str) -> None:
    text = np.random.default_rng(3).integers(0, 256, (3, 20)).astype(np.int32)
    lengths = np.array([7, 1, 10], np.int32)
    want = full_logits(model, text)
    # Whatever a cache held before must not show.
    cache = jax.tree.map(lambda rows: rows.at[:].set(jnp.nan), empty_cache(TOY, 3, 20))
    prompts = jnp.where(jnp.arange(10) < lengths[:, None], text[:, :10], 0)
    fill = jax.jit(prefill, static_argnames="attention")
    logits, cache = fill(model, cache, prompts, jnp.asarray(lengths), attention=attention)
    step = jax.jit(decode_step, static_argnames="attention")
    rows = np.arange(3)
    np.testing.assert_allclose(logits, want[rows, lengths - 1], atol=2e-4, rtol=1e-4)
    if attention == "jax_nn":  # it multiplies masked rows by zero, and 0 x NaN is NaN
        cache = jax.tree.map(jnp.nan_to_num, cache)
    for _ in range(10):
        logits, cache = step(model, cache, lengths, text[rows, lengths], attention=attention)
        np.testing.assert_allclose(logits, want[rows, lengths], atol=2e-4, rtol=1e-4)
        lengths = lengths + 1


def test_a_request_does_not_see_its_batch(model: Llama) -> None:
    together = run_generate(model, PROMPTS, 12)
    for row, prompt in zip(together, PROMPTS, strict=True):
        np.testing.assert_array_equal(run_generate(model, [prompt], 12)[0], row)


def test_a_token_past_the_end_of_the_cache_is_dropped() -> None:
    cache = empty_cache(TOY, 2, 4)
    new = jnp.ones((2, 2, 8))
    keys, values = append_token(cache, jnp.int32(1), jnp.array([3, 4]), new, 2 * new)
    want = np.zeros(cache.keys.shape, np.float32)
    want[1, 0, :, 3] = 1
    np.testing.assert_array_equal(keys, want)
    np.testing.assert_array_equal(values, 2 * want)


def test_generation_copies_no_cache(model: Llama) -> None:
    """The cache is donated, aliased to the result, and updated in place all along the loops."""
    tokens, lengths = pad_prompts(PROMPTS)
    cache = empty_cache(TOY, len(PROMPTS), 51)
    compiled = generate.lower(model, cache, tokens, lengths, jax.random.key(0), steps=8).compile()
    text = compiled.as_text()
    shape = f"f32[{','.join(map(str, cache.keys.shape))}]"
    assert text.count(shape) > 4
    assert not re.findall(rf"= {re.escape(shape)}\S* (?:copy|copy-start|transpose)\(", text)
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * cache.keys.nbytes


def test_generation_calls_the_kernel_on_a_gpu(model: Llama) -> None:
    """Lowered for CUDA, wherever we are: one for the prompts, one in the loop; none of jax.nn's."""
    tokens, lengths = pad_prompts(PROMPTS)
    cache = empty_cache(TOY, len(PROMPTS), 51)

    def calls(attention: str) -> list[int]:
        args = (model, cache, tokens, lengths, jax.random.key(0))
        traced = generate.trace(*args, steps=8, attention=attention)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return [text.count(f"@jax_baracuda_{op}(") for op in ("flash_attention", "flash_decode")]

    assert calls("flash_decode") == [1, 1]
    assert calls("jax_nn") == [0, 0]


def test_sampling_stays_in_the_nucleus() -> None:
    shares = jnp.array([0.15, 0.5, 0.05, 0.3])
    logits = jnp.tile(jnp.log(shares), (2000, 1))

    def draw(**options: float) -> np.ndarray:
        drawn = sample(logits, jax.random.key(0), Sampling(**options))
        return np.bincount(drawn, minlength=4) / 2000

    np.testing.assert_array_equal(draw(temperature=0), [0, 1, 0, 0])
    np.testing.assert_array_equal(draw(temperature=1, top_p=0.0), [0, 1, 0, 0])
    np.testing.assert_allclose(draw(temperature=1), shares, atol=0.04)
    np.testing.assert_allclose(draw(temperature=1, top_p=0.7), [0, 0.625, 0, 0.375], atol=0.04)
    squared = shares**2 / (shares**2).sum()
    np.testing.assert_allclose(draw(temperature=0.5), squared, atol=0.04)


def test_command_line(tmp_path: Path, model: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, model)
    args = ["--checkpoint", str(tmp_path), "--prompt", "def f(", "--max-new-tokens", "20"]
    whole = generate_cli.main(args)
    assert whole.shape == (1, 20)
    assert "def f(" in (printed := capsys.readouterr().out)
    assert "tokens/s (flash_decode" in printed
    np.testing.assert_array_equal(generate_cli.main([*args, "--attention", "jax_nn"]), whole)
    pieces = generate_cli.main([*args, "--stream", "6"])
    end = pieces.shape[1]  # it stops after the piece in which the text ends
    assert end == 20 or data.END_OF_TEXT in pieces[0, -6:]
    np.testing.assert_array_equal(pieces, whole[:, :end])
    with pytest.raises(SystemExit, match="train one"):
        generate_cli.main(["--checkpoint", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="max_position_embeddings=64"):
        generate_cli.main([*args, "--max-new-tokens", "60"])


def test_inference_weights_have_the_arithmetic_type() -> None:
    config = dataclasses.replace(TOY, dtype="bfloat16")
    model = cast_model(create_model(config, seed=0))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    tokens = run_generate(model, PROMPTS, 4)
    assert tokens.shape == (4, 4)
    assert empty_cache(config, 1, 8).keys.dtype == jnp.bfloat16
