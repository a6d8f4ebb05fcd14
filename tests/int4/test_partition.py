"""The sharding rule of the CUDA lowering, with the reference in the place of the kernel.

What XLA does with the rule does not depend on what runs inside it, so eight CPU devices tell.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import int4_matmul
from jax_baracuda._src import compat
from jax_baracuda._src.int4 import partition, primitive
from jax_baracuda.quant import Int4Weight
from jax_baracuda.testing import int4

R = P()
TARGET = "jax_baracuda_int4_matmul"
LEADING = (8, 4)


@functools.cache
def stand_in():
    """int4_matmul_p, but with its CUDA lowering everywhere and the reference as the kernel."""

    def lowering(*operands, insist, **options):
        return partition.partitioned(primitive.reference_call)(*operands, **options)

    probe = Primitive("stand_in")
    probe.multiple_results = True
    probe.def_impl(jax.jit(probe.bind, static_argnames=("group_size", "out_features", "insist")))
    probe.def_abstract_eval(primitive._abstract_eval)
    mlir.register_lowering(probe, mlir.lower_fun(lowering, multiple_results=True))
    batching.primitive_batchers[probe] = functools.partial(primitive.OP.batch, probe)
    ad.primitive_jvps[probe] = functools.partial(primitive._jvp, probe)
    ad.primitive_transposes[probe] = primitive._transpose
    compat.require_devices_during_lowering(probe)
    return probe


@pytest.fixture(autouse=True)
def partitioned_reference(monkeypatch):
    monkeypatch.setattr(primitive, "int4_matmul_p", stand_in())


def operands(ic=512, oc=512, group=64):
    rng = np.random.default_rng(ic + oc)
    weight = Int4Weight.quantize(rng.normal(size=(ic, oc)).astype(np.float16), group_size=group)
    x = jnp.asarray(rng.normal(size=(*LEADING, ic)), jnp.float16)
    return x, weight, jnp.asarray(rng.normal(size=oc), jnp.float16)


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


def place(mesh, arrays, x=R, inputs=None, outputs=None, bias=R, table=True):
    """Shards x by a spec and the weight by mesh axes for its channels."""

    def put(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    activations, weight, added = arrays
    rows = inputs if table else None
    weight = dataclasses.replace(
        weight,
        packed=put(weight.packed, P(outputs, inputs)),
        scales=put(weight.scales, P(rows, outputs)),
        zeros=put(weight.zeros, P(rows, outputs)),
        order=weight.order if weight.order is None else put(weight.order, R),
    )
    return put(activations, x), weight, put(added, bias)


def multiply(x, weight, bias):
    return int4_matmul(x, weight, bias=bias)


def squares(x, weight, bias):
    return (int4_matmul(x, weight, bias=bias).astype(jnp.float32) ** 2).sum()


def run(function, *args):
    """The result, and what is communicated: a list of (operation, number of elements)."""
    compiled = jax.jit(function).lower(*args).compile()
    pattern = r"= \w+\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)[-\w]*\("
    found = [
        (m[2], int(np.prod([int(d) for d in m[1].split(",") if d])))
        for m in re.finditer(pattern, compiled.as_text())
    ]
    return compiled(*args), found


def check(got, arrays, function=multiply, **options):
    want = np.asarray(jax.jit(functools.partial(function, **options))(*arrays), np.float64)
    size = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64) / size, want / size, atol=4e-3)


COLUMNS = [
    pytest.param(dict(outputs="y", bias=P("y")), P(None, None, "y"), id="columns"),
    pytest.param(dict(x=P("x"), outputs="y"), P("x", None, "y"), id="rows of x and columns"),
    pytest.param(dict(outputs=("x", "y")), P(None, None, ("x", "y")), id="columns, both axes"),
    pytest.param(dict(x=P(("x", "y"))), P(("x", "y")), id="rows of x"),
    pytest.param(dict(x=P("x")), P("x"), id="rows of x, one axis"),
    pytest.param(dict(), P(), id="replicated"),
]


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize(("where", "spec"), COLUMNS)
def test_nothing_is_communicated(eight_devices, where, spec, with_context):
    mesh, arrays = mesh_of(eight_devices), operands()
    args = place(mesh, arrays, **where)
    if with_context:
        with jax.set_mesh(mesh):
            got, communicated = run(multiply, *args)
    else:
        got, communicated = run(multiply, *args)
    assert communicated == []
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    check(got, arrays)


ROWS = [
    pytest.param(dict(x=P(None, None, "y"), inputs="y"), 1, id="x and weight"),
    pytest.param(dict(inputs="y"), 1, id="weight"),
    pytest.param(dict(x=P("x", None, "y"), inputs="y"), 2, id="and rows of x"),
    pytest.param(dict(x=P(None, None, "y"), inputs="y", outputs="x"), 2, id="and columns"),
    pytest.param(dict(x=P(None, None, ("x", "y")), inputs=("x", "y")), 1, id="both axes"),
]


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize(("where", "share"), ROWS)
def test_input_channels_cost_one_sum(eight_devices, where, share, group):
    if group == 128 and where["inputs"] != "y":
        pytest.skip("four groups do not go round eight devices")
    mesh, arrays = mesh_of(eight_devices), operands(group=group)
    got, communicated = run(multiply, *place(mesh, arrays, **where, table=group != -1))
    assert communicated == [("all-reduce", 32 * 512 // share)]
    check(got, arrays)  # with the bias once


@pytest.mark.parametrize(
    ("sizes", "where"),
    [
        pytest.param((512, 512, 256), dict(inputs="y", table=False), id="groups that would be cut"),
        pytest.param((500, 256, 64), dict(inputs="y"), id="input channels, no whole tiles"),
        pytest.param((512, 200, 64), dict(outputs="y"), id="output channels, no whole strips"),
        pytest.param((512, 256, 64), dict(x=P("y"), outputs="y"), id="one axis for two"),
        pytest.param((512, 256, 64), dict(x=P("x", None, "y"), outputs="y"), id="one axis again"),
    ],
)
def test_what_cannot_stay_sharded_is_gathered_and_right(eight_devices, sizes, where):
    mesh, arrays = mesh_of(eight_devices), operands(*sizes)
    got, communicated = run(multiply, *place(mesh, arrays, **where))
    assert communicated
    check(got, arrays)


@pytest.mark.parametrize(
    ("where", "sums"),
    [
        (dict(outputs="y", bias=P("y")), [32 * 512]),  # of dx over the columns
        (dict(x=P("x"), outputs="y"), [16 * 512]),
        (dict(x=P(None, None, "y"), inputs="y"), [32 * 512]),  # of the product
        (dict(x=P(("x", "y"))), []),
    ],
)
def test_gradients_gather_no_weight(eight_devices, where, sums):
    mesh, arrays = mesh_of(eight_devices), operands()
    got, communicated = run(jax.grad(squares), *place(mesh, arrays, **where))
    assert communicated == [("all-reduce", size) for size in sums]
    check(got, arrays, jax.grad(squares))


def test_act_order_sharded_by_input_channels(eight_devices):
    mesh = mesh_of(eight_devices)
    _, _, bias = operands()
    weight = int4.make_raw_weight("gptq_act_order", 512, 512, 64).convert()
    arrays = jnp.asarray(np.random.default_rng(0).normal(size=(4, 512)), jnp.float16), weight, bias
    got, communicated = run(multiply, *place(mesh, arrays, x=P(None, "y"), inputs="y"))
    assert all(size <= 4 * 512 for _, size in communicated)  # x and the result, but no weight
    check(got, arrays)


def test_a_block_of_two_products_needs_one_sum(eight_devices):
    """Tensor parallelism: columns, then rows."""
    mesh = mesh_of(eight_devices)
    x, up, _ = operands(512, 1024)
    _, down, _ = operands(1024, 512)
    _, placed_up, _ = place(mesh, (x, up, x), outputs="y")
    placed_x, placed_down, _ = place(mesh, (x, down, x), inputs="y", x=P("x"))

    def block(x, up, down):
        return int4_matmul(jax.nn.silu(int4_matmul(x, up)), down)

    got, communicated = run(block, placed_x, placed_up, placed_down)
    assert communicated == [("all-reduce", 16 * 512)]
    check(got, (x, up, down), block)


def test_a_scan_over_sharded_layers(eight_devices):
    mesh = mesh_of(eight_devices)
    x, weight, _ = operands()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), weight)

    def layers(x, weights):
        def layer(x, weight):
            return int4_matmul(x, weight) / 32, None

        return jax.lax.scan(layer, x, weights)[0]

    specs = dataclasses.replace(
        stacked, packed=P(None, None, "y"), scales=P(None, "y"), zeros=P(None, "y")
    )
    placed = jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), stacked, specs)
    got, communicated = run(layers, jax.device_put(x, NamedSharding(mesh, P("x"))), placed)
    assert [name for name, _ in communicated] == ["all-reduce"]
    check(got, (x, stacked), layers)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(eight_devices, monkeypatch, check_vma):
    """A device's part of a weight is a weight; the sum over input channels is the caller's."""
    monkeypatch.undo()
    mesh = mesh_of(eight_devices)
    x, weight, bias = operands()
    x = x.reshape(-1, 512)

    def parts(packed, table):
        return dataclasses.replace(weight, packed=packed, scales=table, zeros=table)

    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
    columns = shard(
        multiply,
        in_specs=(P("x"), parts(P("y"), P(None, "y")), P("y")),
        out_specs=P("x", "y"),
    )
    check(columns(x, weight, bias), (x, weight, bias))
    rows = shard(
        lambda x, w: jax.lax.psum(int4_matmul(x, w).astype(jnp.float32), "y"),
        in_specs=(P("x", "y"), parts(P(None, "y"), P("y"))),
        out_specs=P("x"),
    )
    check(rows(x, weight), (x, weight), int4_matmul)

    def loss(function, *args):
        return (function(*args).astype(jnp.float32) ** 2).sum()

    for function, args in ((columns, (x, weight, bias)), (rows, (x, weight))):
        plain = multiply if function is columns else int4_matmul
        got = jax.grad(functools.partial(loss, function))(*args)
        check(got, args, jax.grad(functools.partial(loss, plain)))


def test_act_order_in_shard_map_is_refused_by_input_channels(eight_devices):
    mesh = mesh_of(eight_devices)
    weight = int4.make_raw_weight("gptq_act_order", 512, 64, 64).convert()
    specs = dataclasses.replace(weight, packed=P(None, "y"), scales=P("y"), zeros=P("y"), order=R)
    function = jax.shard_map(
        int4_matmul, mesh=mesh, in_specs=(P(None, "y"), specs), out_specs=R, check_vma=False
    )
    with pytest.raises(NotImplementedError, match="act-order"):
        function(jnp.ones((4, 512), jnp.float16), weight)


def test_parts_with_padding_are_refused_in_shard_map(eight_devices):
    """200 channels are three strips and a part of one: no device has the numbers to cut it."""
    mesh = mesh_of(eight_devices)
    x, weight, _ = operands(512, 200)
    specs = dataclasses.replace(weight, packed=P("y"), scales=P(None, "y"), zeros=P(None, "y"))
    function = jax.shard_map(
        int4_matmul, mesh=mesh, in_specs=(R, specs), out_specs=P(None, None, "y")
    )
    with pytest.raises(NotImplementedError, match="200 output channels and is sharded"):
        function(x, weight)


@pytest.mark.parametrize(
    ("where", "spec"), [*COLUMNS, *(pytest.param(p.values[0], None, id=p.id) for p in ROWS)]
)
def test_explicit_meshes(eight_devices, where, spec):
    mesh, arrays = mesh_of(eight_devices, AxisType.Explicit), operands()
    args = place(mesh, arrays, **where)
    with jax.set_mesh(mesh):
        got, communicated = run(multiply, *args)
    assert {name for name, _ in communicated} <= {"all-reduce"}
    if spec is not None:
        assert communicated == []
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    check(got, arrays)


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_gradients_and_matrices_on_explicit_meshes(eight_devices, index):
    mesh, arrays = mesh_of(eight_devices, AxisType.Explicit), operands()
    where = [*(p.values[0] for p in COLUMNS[:4:3]), *(p.values[0] for p in ROWS[::2])][index]
    args = place(mesh, arrays, **where)
    check(args[1].dequantize(), arrays, lambda x, w, b: w.dequantize())
    with jax.set_mesh(mesh):
        got, communicated = run(jax.grad(squares), *args)
        check(jax.jit(Int4Weight.dequantize)(args[1]), arrays, lambda x, w, b: w.dequantize())
    assert {name for name, _ in communicated} <= {"all-reduce"}
    check(got, arrays, jax.grad(squares))


@pytest.mark.parametrize(
    ("where", "match"),
    [
        (dict(x=P("y"), outputs="y"), "must not share a mesh axis"),
        (dict(x=P(None, None, "x"), inputs="y"), "packed is sharded over .* must agree"),
    ],
)
def test_explicit_meshes_refuse_what_would_be_gathered(eight_devices, where, match):
    mesh = mesh_of(eight_devices, AxisType.Explicit)
    args = place(mesh, operands(), **where)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=match):
        jax.jit(multiply)(*args)


def test_one_device_and_shard_map_lower_to_the_plain_call(eight_devices, monkeypatch):
    monkeypatch.undo()  # the real primitive, lowered for CUDA
    arrays = operands()
    mesh = mesh_of(eight_devices)

    def text(function, *args):
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()

    assert f"@{TARGET}" in text(multiply, *arrays)
    assert "CustomSPMDPartitioning" not in text(multiply, *arrays)
    placed = place(mesh, arrays, x=P("x"), outputs="y")
    assert "CustomSPMDPartitioning" in text(multiply, *placed)
    mapped = jax.shard_map(multiply, mesh=mesh, in_specs=(P("x"), R, R), out_specs=P("x"))
    assert f"@{TARGET}" in text(mapped, *arrays)
    assert "CustomSPMDPartitioning" not in text(mapped, *arrays)
