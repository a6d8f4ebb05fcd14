"""Bad input: an error at trace time that names the argument, what was given, what is supported."""

import jax
import jax.numpy as jnp
import pytest

from jax_baracuda import merge_attention_states


def call(**changes):
    arguments = dict(
        out_a=jnp.zeros((2, 3, 4)),
        lse_a=jnp.zeros((2, 3)),
        out_b=jnp.zeros((2, 3, 4)),
        lse_b=jnp.zeros((2, 3)),
    )
    return merge_attention_states(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(out_a=jnp.zeros(())), ["out_a", "()", "[..., H, D]"]),
        (dict(out_b=jnp.zeros((2, 3, 5))), ["out_b", "(2, 3, 5)", "out_a", "(2, 3, 4)"]),
        (dict(out_b=jnp.zeros((1, 3, 4))), ["out_b", "(1, 3, 4)", "(2, 3, 4)"]),
        (dict(lse_a=jnp.zeros((3, 2))), ["lse_a", "(3, 2)", "(2, 3)"]),
        (dict(lse_b=jnp.zeros((2, 3, 4))), ["lse_b", "(2, 3, 4)", "(2, 3)"]),
        (dict(lse_b=0.0), ["lse_b", "()", "(2, 3)"]),
        (dict(out_a=None), ["out_a", "NoneType", "array"]),
        (dict(lse_a="low"), ["lse_a", "str", "array"]),
        (dict(out_a=jnp.zeros((2, 3, 4), jnp.int32)), ["out_a", "int32", "bfloat16"]),
        (dict(lse_b=jnp.zeros((2, 3), bool)), ["lse_b", "bool", "float32"]),
    ],
)
def test_value_error_names_argument_given_and_supported(changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are the match
        call(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["out_a", "out_b"])
def test_other_floats_are_not_implemented(name):
    with pytest.raises(NotImplementedError, match=f"{name} has dtype float8_e5m2.*bfloat16"):
        call(**{name: jnp.zeros((2, 3, 4), jnp.float8_e5m2)})


def test_errors_come_when_tracing():
    with pytest.raises(ValueError, match="lse_a has shape"):
        jax.eval_shape(lambda lse: call(lse_a=lse), jnp.zeros((2, 4)))
