"""What is checked before any work is done: what passes, and what the errors say."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import flowdensity as fd
from flowdensity import _checks
from flowdensity.models.networks import Activation


@pytest.mark.parametrize("key", [jr.key(3), jr.PRNGKey(3), np.asarray(jr.PRNGKey(3))], ids=["typed", "raw", "numpy"])
def test_a_key_of_any_style(key):
    _checks.check_key("fit", key)


def test_a_key_that_is_traced():
    def drawn(key):
        _checks.check_key("fit", key)
        return jr.normal(key)

    keys = jr.split(jr.key(0), 3)
    np.testing.assert_array_equal(jax.jit(jax.vmap(drawn))(keys), jax.vmap(jr.normal)(keys))


@pytest.mark.parametrize("key", [0, None, np.zeros((5, 2)), jr.split(jr.key(0))], ids=["int", "none", "data", "two"])
def test_what_is_no_key(key):
    with pytest.raises(
        TypeError, match=r"fit expected `key` as one JAX PRNG key; got .*Fix: key = jax\.random\.key\((0|key)\)"
    ):
        _checks.check_key("fit", key)


@pytest.mark.parametrize("count", [3, np.int32(3)])
def test_a_count(count):
    checked = _checks.check_count("fit", "steps", count, least=3, most=3, fix=3)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize("count", [2, 5, 3.0, "3", None, True, np.array([3])])
def test_what_is_no_count(count):
    with pytest.raises(ValueError, match=r"fit expected `steps` as an integer from 3 to 4; got .*Fix: steps=3"):
        _checks.check_count("fit", "steps", count, least=3, most=4, fix=3)


@pytest.mark.parametrize("value", [0.0, -1, np.inf, np.nan, "1", None, True, np.ones(1)])
def test_what_is_not_above_zero(value):
    with pytest.raises(ValueError, match=r"fit expected `rate` as a number above 0; got .*Fix: rate=0.1"):
        _checks.check_number("fit", "rate", value, 0.0, fix=0.1)


def test_a_number_of_any_kind():
    for value in (2, np.float32(2.0), jnp.asarray(2.0), np.asarray(2)):
        number = _checks.check_number("fit", "rate", value, 0.0, fix=0.1)
        assert number == 2.0
        assert type(number) is float


@pytest.mark.parametrize(
    ("ends", "inside", "says"),
    [
        ("neither", [False, False], "above 0 and below 1"),
        ("low", [True, False], "at least 0 and below 1"),
        ("high", [False, True], "above 0 and at most 1"),
        ("both", [True, True], "at least 0 and at most 1"),
    ],
)
def test_the_ends_of_an_interval(ends, inside, says):
    for value, allowed in zip((0.0, 1.0), inside, strict=True):
        if allowed:
            assert _checks.check_number("fit", "share", value, 0.0, 1.0, fix=0.5, ends=ends) == value
        else:
            with pytest.raises(ValueError, match=f"expected `share` as a number {says}; got {value}"):
                _checks.check_number("fit", "share", value, 0.0, 1.0, fix=0.5, ends=ends)


@pytest.mark.parametrize("shape", [3, (0,), (2, 1.5), "ab", None])
def test_what_is_no_shape(shape):
    with pytest.raises(
        TypeError, match=r"fit expected `shape` as a tuple of positive integers; got .*Fix: shape=\(2,\)"
    ):
        _checks.check_shape("fit", "shape", shape, "(2,)")


def test_a_shape():
    assert _checks.check_shape("fit", "shape", [2, np.int64(3)], "(2,)") == (2, 3)
    assert _checks.check_shape("fit", "shape", (), "(2,)") == ()


def test_one_of_several_kinds():
    _checks.check_kind("fit", "x", 1.0, int | float, "x=1")
    with pytest.raises(TypeError, match=r"fit expected `x` of type int or float; got 'one'. Fix: x=1"):
        _checks.check_kind("fit", "x", "one", int | float, "x=1")
    with pytest.raises(TypeError, match=r"fit expected `x` of type int; got ndarray of shape \(2,\). Fix: x=1"):
        _checks.check_kind("fit", "x", np.zeros(2), int, "x=1")


def test_a_choice():
    _checks.check_choice("fit", "activation", "silu", Activation, "silu")
    with pytest.raises(ValueError, match=r"one of \('silu', .*; got 'relu'. Fix: activation='silu'"):
        _checks.check_choice("fit", "activation", "relu", Activation, "silu")


@pytest.mark.parametrize(
    "values", [["a"], {"a": 1.0}, [1j], [[1.0], [1.0, 2.0]]], ids=["text", "dict", "complex", "ragged"]
)
def test_what_are_no_real_numbers(values):
    with pytest.raises((TypeError, ValueError), match=r"fit expected `x` as an array .*Fix: "):
        _checks.real_array("fit", "x", values)
    with pytest.raises(TypeError, match=r"fit expected `x` as an array of real numbers; got .*Fix: x=0"):
        _checks.real_jax_array("fit", "x", values, "x=0")


def test_real_numbers():
    np.testing.assert_array_equal(_checks.real_array("fit", "x", [[1, 2]]), np.array([[1.0, 2.0]]))
    for stacked in (lambda x: x, list):
        array = jax.jit(lambda x, s=stacked: _checks.real_jax_array("fit", "x", s(x), ""))(np.arange(3))
        np.testing.assert_array_equal(array, jnp.arange(3.0))


def test_a_velocity_must_take_the_context():
    """Its signature is looked at: an error inside it is its own."""

    def broken(t, x, context):
        raise TypeError("its own")

    normal = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    with pytest.raises(TypeError, match=r"VelocityField expected a callable \(t, x, context\).*too many positional"):
        fd.VelocityField(lambda t, x: x, normal)
    with pytest.raises(TypeError, match=r"^its own"):
        fd.VelocityField(broken, normal)
    fd.VelocityField(jax.tree_util.Partial(lambda a, t, x, c: a * x, 2.0), normal)

    @functools.wraps(lambda t, x: x)
    def adapted(t, x, context):
        return x

    unconditional = fd.VelocityField(adapted, normal)
    assert fd.VelocityField(adapted, normal, context_shape=unconditional.context_shape).context_shape == (0,)


def test_sizes_of_any_integer_type():
    two = np.int64(2)
    zero = jnp.zeros(())
    assert fd.networks.ResidualMLP(jr.key(0), two, width=two, depth=np.int32(1))(zero, jnp.ones(2), jnp.zeros(0))[
        0
    ].shape == (2,)
    network = fd.networks.UNet(jr.key(0), [4, 4, 1], width=two, scales=2)
    assert network.event_shape == (4, 4, 1)
    assert network(zero, jnp.ones(16), jnp.zeros(0))[0].shape == (16,)
