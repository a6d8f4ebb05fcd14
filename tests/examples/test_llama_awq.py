"""examples/llama_awq.py on small folders in the hub's formats, against numpy."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_llama import numpy_llama
from safetensors.numpy import save_file

import llama_awq
from jax_baracuda.nnx import Int4Linear
from jax_baracuda.testing import int4
from llama.decoding import Sampling
from llama.hub import load_hub_model, read_hub_config
from llama.paged_decoding import (
    PagedState,
    advance,
    decode_step,
    empty_state,
    pack_prompts,
    page_table,
    prefill,
    start,
)
from llama.tokens import load_tokens

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "torch_dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
HALF = {"type": "linear", "factor": 2.0}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}

# The format of the tensors, its quantization_config, and what else the config says.
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "awq": ("awq_gemm", AWQ, {"model_type": "llama", "rope_scaling": LLAMA3}),
    "gptq": ("gptq_act_order", GPTQ, {"model_type": "mistral", "tie_word_embeddings": True}),
    "compressed": (
        "compressed_asymmetric",
        COMPRESSED,
        {"model_type": "qwen2", "rope_scaling": HALF},
    ),
}
PROMPTS = [list(range(3, 40)), [5], [80, 2, 2, 41, 7, 7]]


@dataclasses.dataclass
class Folder:
    path: Path
    dense: dict[str, np.ndarray]  # the exact weights, as a checkpoint that is not quantised has

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        config = read_hub_config(self.path)
        return numpy_llama(self.dense, config, tokens, frequencies(config))

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(steps):
            tokens.append(int(self.logits(np.array(tokens))[-1].argmax()))
        return tokens[len(prompt) :]


def frequencies(config: Any) -> np.ndarray:
    """Of the rotary embedding, by the formulas of the two scalings above."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = dict(config.rope_scaling)
    if "type" in scaling:
        return plain / scaling["factor"]
    if not scaling:
        return plain
    turns = scaling["original_max_position_embeddings"] * plain / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / scaling["factor"])


def write(path: Path, kind: str, **changes: Any) -> Folder:
    """A folder with random weights, in three shards."""
    format, quantisation, more = FOLDERS[kind]
    config = SIZES | more | changes
    rng = np.random.default_rng(0)
    E, F, V = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    kv = E * config["num_key_value_heads"] // config["num_attention_heads"]
    sizes = {"q": (E, E), "k": (E, kv), "v": (E, kv), "o": (E, E)}
    layers = {f"self_attn.{name}_proj": size for name, size in sizes.items()}
    layers |= {"mlp.gate_proj": (E, F), "mlp.up_proj": (E, F), "mlp.down_proj": (F, E)}

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    stored = {
        "model.embed_tokens.weight": floats(V, E, scale=0.2),
        "model.norm.weight": 1 + floats(E, scale=0.2),
    }
    dense: dict[str, np.ndarray] = {}

    def quantise(layer: str, ic: int, oc: int) -> None:
        raw = int4.make_raw_weight(format, ic, oc, 32, seed=len(dense))
        names = {"g_idx": "weight_g_idx"} if kind == "compressed" else {}
        stored.update({f"{layer}.{names.get(name, name)}": a for name, a in raw.arrays.items()})
        dense[f"{layer}.weight"] = int4.read(raw).T

    if kind == "compressed":
        quantise("lm_head", E, V)  # as some are
    elif not config.get("tie_word_embeddings"):
        stored["lm_head.weight"] = floats(V, E, scale=0.5)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            stored[f"{at}{norm}.weight"] = 1 + floats(E, scale=0.2)
        for layer, (ic, oc) in layers.items():
            quantise(at + layer, ic, oc)
            if config["model_type"] == "qwen2" and layer[10] in "qkv":
                stored[f"{at}{layer}.bias"] = floats(oc)
    write_files(path, stored, config | {"quantization_config": quantisation})
    return Folder(path, stored | dense)


def write_files(path: Path, stored: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    files = {
        name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(sorted(stored))
    }
    for file in set(files.values()):
        save_file({name: stored[name] for name in stored if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """float32 products stay float32 on a GPU, where the default is TF32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    return {kind: write(tmp_path_factory.mktemp(kind), kind) for kind in FOLDERS}


def state_of(model: Any, steps: int = 8, page_size: int = 4, **changes: Any) -> PagedState:
    """Of PROMPTS, in stores full of NaN: what a page held before must not show."""
    lengths = [len(prompt) for prompt in PROMPTS]
    state = empty_state(model.config, lengths, steps, jax.random.key(0), page_size)
    store = jax.tree.map(lambda rows: jnp.full_like(rows, jnp.nan), state.store)
    return state._replace(store=store, **changes)


def run(folder: Folder, *options: str, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    args = [str(folder.path)]
    for prompt in prompts:
        args += ["--prompt", " ".join(map(str, prompt))]
    return llama_awq.main([*args, "--max-new-tokens", "12", *options])


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        ("float32", 1e-5),
        pytest.param("float16", 5e-3, marks=pytest.mark.gpu),  # on the kernels
        pytest.param("bfloat16", 5e-2, marks=pytest.mark.gpu),
    ],
)
def test_logits(folders: dict[str, Folder], dtype: str, bound: float) -> None:
    """The prompts', and then those of steps in which one request has ended."""
    folder = folders["awq"]
    model = load_hub_model(folder.path, dtype)
    assert isinstance(model.layers.mlp.up_proj, Int4Linear)
    logits, store = jax.jit(prefill)(model, state_of(model), pack_prompts(PROMPTS))
    text = [[*prompt, 11, 60, 1] for prompt in PROMPTS]
    want = [folder.logits(np.array(row)) for row in text]
    lengths = np.array([len(prompt) for prompt in PROMPTS], np.int32)

    def check(logits: jax.Array, lengths: np.ndarray, rows: list[int]) -> None:
        exact = np.stack([want[row][lengths[row] - 1] for row in rows])
        assert int4.relative_error(logits[jnp.array(rows)], exact) < bound

    check(logits, lengths, [0, 1, 2])
    step = jax.jit(decode_step)
    state = state_of(model)._replace(store=store, done=jnp.array([False, True, False]))
    for _ in range(3):
        token = jnp.array([row[n] for row, n in zip(text, lengths, strict=True)], jnp.int32)
        logits, store = step(model, state._replace(lengths=jnp.asarray(lengths), token=token))
        state = state._replace(store=store)
        lengths = lengths + 1
        check(logits, lengths, [0, 2])


@pytest.mark.parametrize("kind", ["awq", "gptq"])
def test_greedy_tokens(folders: dict[str, Folder], kind: str, capsys: Any) -> None:
    folder = folders[kind]
    # Which is greedy, too: the nucleus is one token.
    options = ["--temperature", "2", "--top-p", "0.001"] if kind == "gptq" else []
    generated = run(folder, *options)
    assert generated == [folder.greedy(prompt, 12) for prompt in PROMPTS]
    assert len({token for row in generated for token in row}) > 8  # lively: equality says something
    out, err = capsys.readouterr()
    assert re.search(r"44 tokens of prompts .* 33 tokens in .* tokens/s \(.*compiled in", out)
    assert " ".join(map(str, PROMPTS[2] + generated[2])) in out
    assert "36/36" in err  # the bar
    assert f"load {folder.path.name}" in err


def test_texts_end_where_generation_config_says(tmp_path: Path) -> None:
    """With other pages, and the loop in pieces, which must not matter."""
    folder = write(tmp_path, "compressed", eos_token_id=1)
    plain = [folder.greedy(prompt, 12) for prompt in PROMPTS]
    ends = [plain[0][4], plain[1][7]]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    want = [row[: next((i for i, token in enumerate(row) if token in ends), 12)] for row in plain]
    assert want != plain
    assert run(folder, "--page-size", "1", "--stream", "5") == want
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[0]}))
    assert read_hub_config(tmp_path).eos_token_ids == (ends[0],)


def test_sampling(folders: dict[str, Folder]) -> None:
    folder = folders["gptq"]
    model, prompts, sampling = load_hub_model(folder.path), pack_prompts(PROMPTS), Sampling(2.0)

    def draw(seed: int, *pieces: int) -> list[list[int]]:
        state = start(model, state_of(model, key=jax.random.key(seed)), prompts, sampling=sampling)
        for until in pieces:
            state = advance(model, state, jnp.int32(until), sampling=sampling)
        return state.tokens.tolist()

    greedy = [folder.greedy(prompt, 8) for prompt in PROMPTS]
    warm = draw(0, 8)
    assert warm != greedy
    assert draw(0, 3, 4, 8) == warm
    assert draw(1, 8) != warm


def test_the_loop_calls_the_kernels_and_copies_no_store(folders: dict[str, Folder]) -> None:
    model = load_hub_model(folders["awq"].path, "bfloat16")
    ops = ("int4_matmul", "append", "paged_prefill", "paged_decode")

    def calls(traced: Any) -> list[int]:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return [text.count(f"@jax_baracuda_{op}(") for op in ops]

    state = state_of(model)
    assert calls(start.trace(model, state, pack_prompts(PROMPTS))) == [7, 1, 1, 0]
    assert calls(advance.trace(model, state, jnp.int32(8))) == [7, 1, 0, 1]
    model = load_hub_model(folders["awq"].path)
    state = state_of(model)
    compiled = advance.lower(model, state, jnp.int32(8)).compile()
    shape = re.escape(f"f32[{','.join(map(str, state.store.keys.shape))}]")
    assert len(re.findall(shape, compiled.as_text())) > 4
    assert not re.findall(rf"= {shape}\S* (?:copy|copy-start|transpose)\(", compiled.as_text())
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * state.store.keys.nbytes


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=3, max_size=3), st.sampled_from([1, 4]))
def test_page_table(lengths: list[int], page_size: int) -> None:
    pages = np.random.default_rng(0).permutation(64)[:36].reshape(3, 12)
    make = jax.jit(page_table, static_argnames="page_size")
    table = make(pages, np.array(lengths, np.int32), page_size=page_size)
    indices, indptr, last = map(np.asarray, table)
    for row, length in enumerate(lengths):
        count = -(-length // page_size)
        named = indices[indptr[row] : indptr[row + 1]]
        np.testing.assert_array_equal(named, pages[row, :count])
        assert count == 0 or (count - 1) * page_size + last[row] == length


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    def says(complaint: str, path: Path = tmp_path) -> None:
        with pytest.raises(SystemExit, match=complaint):
            llama_awq.main([str(path), "--prompt", "1", "--max-new-tokens", "4"])

    says(r"nowhere.*config\.json", tmp_path / "nowhere")
    for change, complaint in [
        ({"model_type": "gpt2"}, "model_type = 'gpt2'; supported: 'llama', 'mistral', 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window": 64}, "sliding_window = 64"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ]:
        folder = write(tmp_path, "awq")
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        says(complaint)
    unused = {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}
    (tmp_path / "config.json").write_text(json.dumps(SIZES | unused))
    assert read_hub_config(tmp_path).rope_scaling == ()
    stored = folder.dense | {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    write_files(tmp_path, stored, config)
    says("q_norm")


def test_prompts_that_the_model_cannot_take(folders: dict[str, Folder]) -> None:
    for prompts, complaint in [([[]], "gives"), ([[96]], "from 0 to 96"), ([[1] * 120], "=128")]:
        with pytest.raises(SystemExit, match=complaint):
            run(folders["awq"], prompts=prompts)


def test_tokens_without_a_tokenizer(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    assert load_tokens(tmp_path, 256).encode("é") == [195, 169]
    assert load_tokens(tmp_path, 256).decode([195, 169, 33]) == "é!"
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert load_tokens(tmp_path, 1000).encode("7 529") == [7, 529]
    assert "pip install tokenizers" in capsys.readouterr().out


def test_tokens_of_a_tokenizer_file(folders: dict[str, Folder], capsys: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(90)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = folders["awq"].path / "tokenizer.json"
    tokenizer.save(str(file))
    try:
        generated = llama_awq.main(
            [str(folders["awq"].path), "--prompt", "w80 w2 w2", "--max-new-tokens", "3"]
        )
    finally:
        file.unlink()
    assert generated == [folders["awq"].greedy([80, 2, 2], 3)]
    assert "w80 w2 w2 " + " ".join(f"w{i}" for i in generated[0]) in capsys.readouterr().out
