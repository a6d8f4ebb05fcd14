"""Inverse frequencies and the options of a rotation."""

import math

import numpy as np
import pytest

from jax_baracuda._src.cache.frequencies import rotation
from jax_baracuda.testing.cache_cases import LLAMA3, YARN


def test_no_scaling():
    found = rotation(8, theta=100.0)
    np.testing.assert_allclose(found.inv_freq, [1, 100**-0.25, 0.1, 100**-0.75], rtol=1e-6)
    assert found.inv_freq.dtype == np.float32
    assert (found.interleaved, found.attention_factor) == (False, 1.0)
    part = rotation(128, rotary_dim=np.int64(8), theta=100, interleaved=True)
    np.testing.assert_array_equal(part.inv_freq, found.inv_freq)
    assert part.interleaved


def test_linear_scaling_divides():
    plain, scaled = rotation(64), rotation(64, scaling={"type": "linear", "factor": 4})
    np.testing.assert_allclose(scaled.inv_freq, plain.inv_freq / 4, rtol=1e-6)


# Of transformers 5.23: pair -> inverse frequency.
GOLDEN = [
    pytest.param(
        128,
        500000.0,
        LLAMA3,
        {
            0: 1.0,
            20: 0.0165604401,
            29: 0.00216657076,
            33: 0.00031269375,
            36: 7.78465527e-05,
            50: 4.41153467e-06,
            63: 3.06892599e-07,
        },
        1.0,
        id="Llama 3.1",
    ),
    pytest.param(
        64,
        10000.0,
        {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
        },
        {
            0: 1.0,
            8: 0.1,
            11: 0.0390069266,
            14: 0.0124479559,
            20: 0.000790569415,
            31: 3.33380358e-06,
        },
        1.0569662567531275,
        id="like DeepSeek",
    ),
    pytest.param(
        64,
        150000.0,
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        {
            0: 1.0,
            8: 0.0508132748,
            11: 0.0115920493,
            14: 0.00209379238,
            20: 1.81883367e-05,
            31: 3.02351143e-07,
        },
        1.3465735902799727,
        id="gpt-oss",
    ),
]


@pytest.mark.parametrize(("head_dim", "theta", "scaling", "golden", "factor"), GOLDEN)
def test_scalings_as_transformers_has_them(head_dim, theta, scaling, golden, factor):
    found = rotation(head_dim, theta=theta, scaling=scaling)
    got = found.inv_freq[list(golden)]
    np.testing.assert_allclose(got, list(golden.values()), rtol=3e-7)
    assert math.isclose(found.attention_factor, factor, rel_tol=1e-12)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    plain, scaled = rotation(128), rotation(128, scaling=YARN)
    ratio = plain.inv_freq / scaled.inv_freq
    np.testing.assert_allclose(ratio[:20], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[-16:], 4, rtol=1e-6)
    assert (np.diff(ratio) >= -1e-5).all()
    assert math.isclose(scaled.attention_factor, 0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"attention_factor": 0.5}, 0.5),
        ({"attention_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 2.0}, 0.5),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 0.0, "mscale_all_dim": 1.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 2.0}, 1.0),
        ({"factor": 0.5}, 1.0),
        ({"attention_factor": None, "beta_fast": None}, 0.1 * math.log(4) + 1),
    ],
)
def test_attention_factor_of_yarn(fields, factor):
    assert math.isclose(rotation(64, scaling=YARN | fields).attention_factor, factor)


def test_yarn_of_a_context_too_short_for_a_ramp():
    found = rotation(4, theta=1e6, scaling=YARN | {"original_max_position_embeddings": 7})
    assert np.isfinite(found.inv_freq).all()
    assert (found.inv_freq > 0).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"theta": 1.0}, ValueError, ["theta", "1.0", "> 1"]),
        ({"theta": float("inf")}, ValueError, ["theta", "inf", "finite"]),
        ({"theta": "big"}, ValueError, ["theta", "'big'"]),
        ({"interleaved": 1}, ValueError, ["interleaved", "1", "True or False"]),
        ({"rotary_dim": 0}, ValueError, ["rotary_dim", "0", "2 to the head dimension, 8"]),
        ({"rotary_dim": 10}, ValueError, ["rotary_dim", "10"]),
        ({"rotary_dim": 3}, ValueError, ["rotary_dim", "3", "even"]),
        ({"rotary_dim": 4.0}, ValueError, ["rotary_dim", "4.0"]),
        ({"scaling": "llama3"}, ValueError, ["scaling", "'llama3'", "mapping"]),
        ({"scaling": {}}, NotImplementedError, ["rope_type None", "'llama3'", "'yarn'"]),
        ({"scaling": {"rope_type": "dynamic"}}, NotImplementedError, ["'dynamic'"]),
        ({"scaling": {"rope_type": ["yarn"]}}, NotImplementedError, ["['yarn']"]),
        (
            {"scaling": {"rope_type": "yarn", "type": "linear", "factor": 2}},
            NotImplementedError,
            ["rope_type None"],
        ),
        ({"scaling": {"rope_type": "linear"}}, ValueError, ["'linear'", "needs 'factor'"]),
        ({"scaling": {"rope_type": "linear", "factor": 0}}, ValueError, ["factor", "0", "> 0"]),
        ({"scaling": {"rope_type": "linear", "factor": "2"}}, ValueError, ["factor", "'2'"]),
        ({"scaling": YARN | {"beta": 3}}, ValueError, ["'yarn'", "unknown", "'beta'"]),
        ({"scaling": YARN | {"truncate": 1}}, ValueError, ["truncate", "1"]),
        ({"scaling": LLAMA3 | {"factor": None}}, ValueError, ["'llama3'", "'factor'"]),
        (
            {"scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            ValueError,
            ["high_freq_factor", "1", "> low_freq_factor"],
        ),
    ],
)
def test_errors_name_the_option_and_what_is_supported(options, error, words):
    with pytest.raises(error) as raised:
        rotation(8, **options)
    for word in words:
        assert word in str(raised.value)


def test_an_odd_head_dimension_needs_a_rotary_dim():
    with pytest.raises(ValueError, match="rotary_dim is None and the head dimension 7"):
        rotation(7)
    assert len(rotation(7, rotary_dim=6).inv_freq) == 3
