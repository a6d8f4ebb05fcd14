"""load_checkpoint on small folders in the real formats, layer by layer against numpy."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jax_baracuda import int4_matmul
from jax_baracuda.quant import Int4Weight, load_checkpoint
from jax_baracuda.testing import int4

COMPRESSED_NAMES = {"g_idx": "weight_g_idx"}
LAYERS = {
    "model.layers.0.self_attn.q_proj": (128, 64),
    "model.layers.0.mlp.down_proj": (256, 128),
    "model.layers.1.mlp.down_proj": (256, 128),
}


def compressed(group="group", **weights):
    arguments = {"num_bits": 4, "type": "int", "strategy": group, "group_size": 64} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": arguments, "input_activations": None}
        },
    }


def awq(**entries):
    return {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"} | entries


def gptq(**entries):
    return {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False} | entries


# quantization_config, the format of the tensors, the group size.
CASES = {
    "awq": (awq(zero_point=True, modules_to_not_convert=["lm_head"]), "awq_gemm", 64),
    "awq upper case": (awq(version="GEMM"), "awq_gemm", 64),
    "awq gemv": (awq(version="gemv"), "awq_gemv", 64),
    "gptq": (gptq(desc_act=False), "gptq_v1", 64),
    "gptq v1": (gptq(checkpoint_format="gptq"), "gptq_v1", 64),
    "gptq v2": (gptq(checkpoint_format="gptq_v2"), "gptq_v2", 64),
    "gptq act-order": (gptq(desc_act=True, dynamic={"-:lm_head": {}}), "gptq_act_order", 64),
    "gptq per channel": (gptq(group_size=-1), "gptq_v1", -1),
    "compressed symmetric": (compressed(symmetric=True), "compressed_symmetric", 64),
    "compressed asymmetric": (compressed(symmetric=False), "compressed_asymmetric", 64),
    "compressed per channel": (
        compressed("channel", symmetric=True, group_size=None),
        "compressed_symmetric",
        -1,
    ),
    "compressed act-order": (
        compressed(symmetric=True, actorder="group"),
        "compressed_act_order",
        64,
    ),
}


@dataclasses.dataclass
class Folder:
    path: object
    raw: dict
    plain: dict


def write(path, config, format, group, *, shards=1, dtype="float16", tensors=None):
    """A folder as the hub has it, of one format."""
    path.mkdir(exist_ok=True)
    raw = {
        name: int4.make_raw_weight(format, ic, oc, group, seed=i, dtype=dtype)
        for i, (name, (ic, oc)) in enumerate(LAYERS.items())
    }
    rng = np.random.default_rng(0)
    plain = {
        "model.embed_tokens.weight": rng.normal(size=(10, 16)).astype(ml_dtypes.bfloat16),
        "model.layers.0.self_attn.q_proj.bias": rng.normal(size=64).astype(np.float16),
        "model.norm.weight": rng.normal(size=16).astype(np.float32),
        "lm_head.weight": rng.normal(size=(10, 16)).astype(np.float16),
        "steps": np.arange(3),
    }
    stored = dict(plain)
    for layer, weight in raw.items():
        names = COMPRESSED_NAMES if "compressed" in format else {}
        stored |= {f"{layer}.{names.get(name, name)}": a for name, a in weight.arrays.items()}
        if "compressed" in format:
            stored[f"{layer}.weight_shape"] = np.array([weight.out_features, weight.in_features])
    stored |= tensors or {}
    (path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": config})
    )
    if shards == 1:
        save_file(stored, path / "model.safetensors")
        return Folder(path, raw, plain)
    # One after another in the order of the names, so that layers are split between files.
    files = {}
    for index, name in enumerate(sorted(stored)):
        files[name] = f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors"
    for file in set(files.values()):
        save_file({name: stored[name] for name in stored if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return Folder(path, raw, plain)


def check(loaded, folder):
    assert set(loaded) == {*(f"{layer}.weight" for layer in folder.raw), *folder.plain}
    for name, array in folder.plain.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert isinstance(loaded[name], jax.Array)
    for layer, raw in folder.raw.items():
        weight = loaded[f"{layer}.weight"]
        assert isinstance(weight, Int4Weight)
        want = int4.read(raw)
        np.testing.assert_array_equal(np.asarray(weight.dequantize(), np.float64), want)
        x = np.random.default_rng(1).normal(size=(3, raw.in_features)).astype(np.float16)
        assert int4.relative_error(int4_matmul(x, weight), x.astype(np.float64) @ want) < 5e-4


@pytest.mark.parametrize("case", CASES)
def test_every_format(case, tmp_path):
    folder = write(tmp_path, *CASES[case])
    check(load_checkpoint(folder.path, progress=False), folder)


def test_shards_whose_layers_are_split(tmp_path, capsys):
    folder = write(tmp_path, *CASES["gptq act-order"], shards=3)
    check(load_checkpoint(str(folder.path)), folder)
    assert f"load {tmp_path.name}" in capsys.readouterr().err
    load_checkpoint(folder.path, progress=False)
    assert capsys.readouterr().err == ""


def test_a_bar_is_optional(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    folder = write(tmp_path, *CASES["awq"])
    check(load_checkpoint(folder.path), folder)
    assert capsys.readouterr().err == ""


def test_a_nested_configuration(tmp_path):
    config, *rest = CASES["awq"]
    folder = write(tmp_path, config, *rest)
    nested = {"text_config": {"quantization_config": config}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    check(load_checkpoint(tmp_path, progress=False), folder)


def test_floats_of_one_dtype(tmp_path):
    folder = write(tmp_path, *CASES["awq"])
    loaded = load_checkpoint(folder.path, dtype="bfloat16", progress=False)
    assert loaded.pop("steps").dtype == jnp.int32
    assert {value.dtype for value in loaded.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("stored", "offset"), [(7, 1), (8, 0)])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
def test_symmetric_gptq_tells_its_version(tmp_path, stored, offset, label):
    """Whatever its label: the zero point of a symmetric weight is 8."""
    words = np.uint32(0x11111111 * stored).astype(np.int32)
    zeros = {
        f"{layer}.qzeros": np.full((-(-ic // 64), oc // 8), words)
        for layer, (ic, oc) in LAYERS.items()
    }
    config = gptq(sym=True, checkpoint_format=label)
    write(tmp_path, config, "gptq_v1", 64, tensors=zeros)
    loaded = load_checkpoint(tmp_path, progress=False)
    for layer in LAYERS:
        assert (loaded[f"{layer}.weight"].zeros == 8).all()


def test_zero_points_of_old_compressed_tensors(tmp_path):
    folder = write(tmp_path, *CASES["compressed asymmetric"])
    old = {}
    for layer, raw in folder.raw.items():
        words = raw.arrays["weight_zero_point"]
        nibbles = (words[:, None].astype(np.int64) >> 4 * np.arange(8)[None, :, None]) & 15
        old[f"{layer}.weight_zero_point"] = (nibbles.reshape(-1, words.shape[1]) - 8).astype(
            np.int8
        )
    config, *rest = CASES["compressed asymmetric"]
    folder = write(tmp_path, config, *rest, tensors=old)
    check(load_checkpoint(tmp_path, progress=False), folder)


def test_place_takes_every_value_to_its_devices(tmp_path, eight_devices):
    folder = write(tmp_path, *CASES["awq"])
    mesh = jax.make_mesh((2,), ("x",), devices=eight_devices[:2])
    seen = []

    def place(name, value):
        seen.append(name)
        if name != "model.layers.0.mlp.down_proj.weight":
            return value
        column = NamedSharding(mesh, P(None, "x"))
        specs = dataclasses.replace(
            value, packed=NamedSharding(mesh, P("x")), scales=column, zeros=column
        )
        return jax.device_put(value, specs)

    loaded = load_checkpoint(folder.path, place=place, progress=False)
    assert set(seen) == set(loaded)
    weight = loaded["model.layers.0.mlp.down_proj.weight"]
    assert len(weight.packed.sharding.device_set) == 2
    check(loaded, folder)


def refused(tmp_path, config, error=NotImplementedError, format="awq_gemm", **options):
    write(tmp_path, config, format, 64, **options)
    with pytest.raises(error) as caught:
        load_checkpoint(tmp_path, progress=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "fp8"}, "quant_method = 'fp8'; supported: 'awq', 'gptq'"),
        ({}, "no quantization_config"),
        (awq(bits=8), "bits = 8; supported: 4"),
        (awq(version="marlin"), "version = 'marlin'; supported: 'gemm' and 'gemv'"),
        (awq(zero_point=False), "zero_point = False"),
        (awq(backend="llm-awq"), "backend = 'llm-awq'"),
        (gptq(bits=3), "bits = 3"),
        (gptq(checkpoint_format="marlin"), "checkpoint_format = 'marlin'"),
        (gptq(dynamic={"+:.*q_proj": {"bits": 8}}), r"dynamic = ['+:.*q_proj']"),
        (compressed(num_bits=8), "config_groups.group_0.weights.num_bits = 8"),
        (compressed(type="float"), "weights.type = 'float'"),
        (compressed("tensor"), "strategy = 'tensor'"),
        (compressed() | {"format": "marlin-24"}, "format = 'marlin-24'"),
        (compressed() | {"config_groups": {}}, "config_groups = {}"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, config, said):
    assert said in refused(tmp_path, config, (NotImplementedError, ValueError))


def test_activations_and_unlike_groups(tmp_path):
    config = compressed()
    group = config["config_groups"]["group_0"]
    group["input_activations"] = {"num_bits": 8}
    assert "group_0.input_activations = {'num_bits': 8}" in refused(tmp_path, config)
    config = compressed()
    other = compressed(group_size=32)["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = other
    assert "config_groups = ['group_0', 'group_1']" in refused(tmp_path, config)
    config["config_groups"]["group_1"] = compressed()["config_groups"]["group_0"]
    write(tmp_path, config | {"symmetric": True}, "compressed_symmetric", 64)


def test_folders_that_contradict_themselves(tmp_path):
    said = refused(tmp_path, awq(group_size=128), ValueError)
    assert "model.layers.0.mlp.down_proj: qzeros has shape (4, 16); it must be (2, 16)" in said
    said = refused(tmp_path, compressed(symmetric=False), ValueError, "compressed_symmetric")
    assert "weight_zero_point, and its config says symmetric: false" in said
    alone = {"other.qweight": np.ones((8, 8), np.int32)}
    said = refused(tmp_path, awq(), ValueError, tensors=alone)
    assert "other.qweight is there, but not other.qzeros, other.scales" in said


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
    write(tmp_path, awq(), "awq_gemm", 64, shards=2)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00002\.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(FileNotFoundError, match="0 safetensors files"):
        load_checkpoint(tmp_path)


def test_safetensors_is_optional(tmp_path, monkeypatch):
    write(tmp_path, awq(), "awq_gemm", 64)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"jax-baracuda\[quant\]"):
        load_checkpoint(tmp_path)
