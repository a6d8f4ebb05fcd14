"""What the benchmarks measure with: oracles, inputs, HLO; and every kind of cell, once, tiny."""

from __future__ import annotations

import os

import attention_peers
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import paged_grid
import paged_inputs
import paged_peers
import pytest
from attention_peers import AttentionCell
from paged_cells import DecodeCell, Job, RopeCell

import jax_baracuda
from jax_baracuda.testing import timing

# ---- oracles


@pytest.mark.parametrize("rows", [1, 3])
def test_attend_is_causal_attention(rows):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape) for shape in ((rows, 4, 8), (2, 11, 8), (2, 11, 8)))
    expected = np.zeros((rows, 4, 8))
    for row in range(rows):
        seen = 11 - rows + row + 1
        for head in range(4):
            logits = k[head // 2, :seen] @ q[row, head] / np.sqrt(8)
            weights = np.exp(logits - logits.max())
            expected[row, head] = weights @ v[head // 2, :seen] / weights.sum()
    got = oracle.attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_rotate_turns_pairs():
    x = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    positions = np.arange(5) * 3
    pairs = x[..., :4] + 1j * x[..., 4:]
    turned = pairs * np.exp(1j * positions[:, None, None] * 10000.0 ** (-np.arange(4) / 4))
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(oracle.rotate(x, positions), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_result_has_no_time():
    right = jnp.ones(4)
    assert oracle.require(oracle.relative_error(right * 1.001, right)) < 2e-3
    for wrong in (right * 1.1, right * jnp.nan):
        with pytest.raises(RuntimeError, match="wrong result"):
            oracle.require(oracle.relative_error(wrong, right))


# ---- inputs


@pytest.mark.parametrize("shape", [(3, 5), (7, 2, 16, 64), (300, 2, 16, 128)])
def test_random_inputs_fill_all_of_an_array(shape):
    array = paged_inputs.normal(shape, seed=3, mean=1.0)
    assert array.shape == shape
    assert array.dtype == jnp.bfloat16
    flat = np.asarray(array, np.float32).reshape(-1)
    if flat.size > 1000:
        assert (flat == 0).mean() < 0.01
        assert flat.mean() == pytest.approx(1, abs=0.1)
        assert flat.std() == pytest.approx(1, abs=0.1)


def test_sets_of_inputs_differ():
    first, second = (paged_inputs.keys_and_values((4, 32), seed) for seed in (0, 1))
    assert not (first[0] == second[0]).all()
    assert not (first[0] == first[1]).all()


# ---- compiled programs


def test_copies_of_a_store_are_found_in_hlo():
    text = """
      %copy.1 = bf16[64,8,16,128]{3,2,1,0} copy(%p0)
      ROOT %copy.2 = bf16[8,128]{1,0} copy(%p1)
      %start = (bf16[64,8,16,128]{3,2,1,0}, bf16[64,8,16,128]{3,2,1,0}, u32[]) copy-start(%p2)
      %fusion = bf16[64,8,16,128]{3,2,1,0} fusion(%copy.1), calls=%copy_computation
      %custom = (bf16[64,8,16,128]{3,2,1,0}, s32[]) custom-call(%p3)
    """
    found = hlo.copies(text, 64 * 8 * 16 * 128)
    assert [line.split(" = ")[0] for line in found] == ["%copy.1", "%start"]
    assert len(hlo.copies(text, 8 * 128)) == 3
    assert len(hlo.copies(text, 10**9)) == 0


def test_copies_are_found_in_a_program_that_may_not_write_in_place():
    def program(x):
        return jax.lax.dynamic_update_slice(x, jnp.ones((1, 64)), (3, 0))

    x = jnp.zeros((128, 64))

    def copies(**options):
        text = jax.jit(program, **options).lower(x).compile().as_text()
        return len(hlo.copies(text, x.size))

    assert copies() > 0
    assert copies(donate_argnums=0) == 0


def test_time_carried_hands_the_state_on():
    seen = []

    def program(state, more):
        seen.append(int(state))
        return state + more

    timed = timing.time_carried(
        program, jnp.int32(0), (jnp.int32(2),), calls=4, seconds=0.0, samples=3
    )
    assert seen == list(range(0, 2 * len(seen), 2))
    assert timed.calls == 4
    assert 0 < timed.fastest <= timed.ms <= timed.slowest


# ---- the jax engine

ONE_OF_EACH_KIND = {
    type(cell): cell for cells in paged_grid.tiny().values() for cell in reversed(cells)
}


@pytest.fixture(scope="module")
def engine():
    """In this process, whose environment is put back."""
    before = dict(os.environ)
    yield paged_peers.JaxEngine()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND, ids=lambda kind: kind.__name__)
def test_engine_checks_and_times(engine, kind):
    cell = ONE_OF_EACH_KIND[kind]
    job = next(job for job in cell.jobs if job.impl == "jax_baracuda")
    engine.prepare([job], cell)
    answer = engine.measure(job, cell, 0.0)
    assert answer["ms"] > 0
    assert 0 <= answer["error_vs_float32"] < 2e-2


def test_engine_gives_a_wrong_result_no_time(engine, monkeypatch):
    cell = ONE_OF_EACH_KIND[RopeCell]
    monkeypatch.setattr(jax_baracuda, "apply_rope", lambda x, positions: x)
    engine.prepare([Job("jax_baracuda")], cell)
    with pytest.raises(RuntimeError, match="wrong result"):
        engine.measure(Job("jax_baracuda"), cell, 0.0)


def test_engine_passes_on_what_does_not_compile(engine):
    cell = ONE_OF_EACH_KIND[DecodeCell]
    engine.prepare([Job("nonsense")], cell)
    with pytest.raises(ValueError, match="unknown implementation 'nonsense'"):
        engine.measure(Job("nonsense"), cell, 0.0)


# ---- attention


@pytest.mark.parametrize("variant", sorted({"", *attention_peers.VARIANTS} - {"portable"}))
def test_attention_engine_checks_variants(variant, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(attention_peers, "_NUMBERS", 1 << 13)
    monkeypatch.setattr(attention_peers, "_VARIANTS", 2)
    monkeypatch.setattr(attention_peers, "UNEVEN", (30, 50, 48))
    cell = AttentionCell(64, 16, True, 2, 2, 2, variant=variant)
    engine = attention_peers.JaxEngine()
    engine.prepare([("jax_baracuda", "fwdbwd")], cell)
    answer = engine.measure("jax_baracuda", "fwdbwd", cell, 0.0)
    assert answer["ms"] > 0
    assert variant == "dropout" or 0 <= answer["error_vs_float32"] < 2e-2
    with pytest.raises(ValueError, match="on ours alone" if variant else "unknown"):
        engine.op("jax_nonsense", cell)


def test_portable_calls_leave_out_kernels_of_one_architecture():
    cell = AttentionCell(64, 16, True, 2, 2, 2, variant="portable")
    attend = attention_peers.JaxEngine.op(None, "jax_baracuda", cell)

    def gradients(q, k, v):
        return jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    shapes = [jax.ShapeDtypeStruct(cell.q_shape, jnp.bfloat16)] * 3
    text = jax.jit(gradients).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("portable = true") == text.count("custom_call @jax_baracuda") == 2


def test_uneven_sequences_are_as_much_work_as_even_ones():
    lengths = np.array(attention_peers.UNEVEN)
    assert lengths.sum() == 4 * 4096
    assert (lengths**2).sum() == pytest.approx(4 * 4096**2, rel=1e-4)
