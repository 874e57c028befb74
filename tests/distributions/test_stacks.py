"""Several densities in one, as after `jax.vmap` or `jax.tree.map`, are refused by name; mapped again, they work."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import conditional_gaussian_flow, gaussian_flow

import flowdensity as fd

SOLVER = fd.FixedStep(2)
ONE = fd.FlowDensity(gaussian_flow(), solver=SOLVER)
STACK = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), ONE)
GIVEN_LATER = fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)
NETWORK = fd.networks.LogDensityNetwork(jr.key(0), 2, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0))
FAST = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), fd.AmortizedDensity(NETWORK, ONE))
CALLS = {
    "log_prob": lambda: STACK.log_prob(np.zeros(2)),
    "sample": lambda: STACK.sample(jr.key(0)),
    "to_base": lambda: STACK.to_base(np.zeros(2)),
    "from_base": lambda: STACK.from_base(np.zeros(2)),
    "sample_with_intermediates": lambda: STACK.sample_with_intermediates(jr.key(0)),
    "sample_diffusion": lambda: STACK.sample_diffusion(jr.key(0)),
    "amortized": lambda: FAST.log_prob(np.zeros(2)),
    "given": lambda: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), GIVEN_LATER).given(np.zeros((3, 3))),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_stack_of_densities_is_not_one(call):
    with pytest.raises(ValueError, match=r"expected one density; got a stack .*Fix: jax\.vmap\(lambda one: one\.\w+\("):
        call()


def test_a_stack_of_models_is_not_one():
    models = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), ONE.model)
    with pytest.raises(ValueError, match=r"FlowDensity expected one `model`; got a stack of 3.*Fix: jax\.vmap"):
        fd.FlowDensity(models)


def test_the_fix_runs():
    value = np.array([0.3, -0.2])
    expected = np.full(3, ONE.log_prob(value))
    np.testing.assert_allclose(jax.vmap(lambda one: one.log_prob(value))(STACK), expected, rtol=1e-6)
