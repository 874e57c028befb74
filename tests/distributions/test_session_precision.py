"""Learned with 64 bits and used with 32, and the other way round."""

import contextlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_flow, to64

import flowdensity as fd

ROWS = np.random.default_rng(0).normal(size=(40, 2))
CONTEXTS = np.random.default_rng(1).normal(size=(40, 1))
FLOW = random_flow(jr.key(0), 2, 1, width=8)
BOTH = pytest.mark.parametrize(("learned", "used"), [(64, 32), (32, 64)], ids=["64 to 32", "32 to 64"])
"""The two combinations that switch; where learning and use have the same precision nothing is cut."""


def session(bits: int) -> contextlib.AbstractContextManager:
    return jax.enable_x64(bits == 64)


def made(bits: int) -> tuple[fd.FlowDensity, fd.AmortizedDensity]:
    """A conditional density and one with a network for it, as they come out of a session of a precision."""
    with session(bits):
        model = to64(FLOW) if bits == 64 else FLOW
        network = fd.networks.LogDensityNetwork(
            jr.key(1), 2, 1, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0), width=8
        )
        density = fd.FlowDensity(model, solver=fd.FixedStep(2))
        return density, fd.AmortizedDensity(network, density)


@BOTH
@pytest.mark.parametrize("which", [0, 1], ids=["flow", "amortized"])
def test_a_density_computes_in_the_precision_of_the_session(learned, used, which):
    with session(learned):
        density = made(learned)[which]
        given = density.given(CONTEXTS[0])
        expected = np.asarray(given.log_prob(ROWS))
    with session(used):
        found = given.log_prob(ROWS)
        assert found.dtype == f"float{used}"
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(density.given(CONTEXTS[0]).log_prob(ROWS), found, rtol=1e-6, atol=1e-6)
        slope = jax.jit(jax.grad(lambda density, x: jnp.sum(density.log_prob(x)), argnums=1))(
            given, jnp.asarray(ROWS, float)
        )
        assert slope.dtype == f"float{used}"
        assert bool(jnp.isfinite(slope).all())
        assert given.sample(jr.key(0), (3,)).dtype == f"float{used}"


@BOTH
def test_the_change_of_variables_and_rounded_values(learned, used):
    with session(learned):
        given = made(learned)[0].given(CONTEXTS[0])
        rounded = fd.Rounded(given, 0.1, points=4)
    with session(used):
        assert given.from_base(given.to_base(ROWS)).dtype == f"float{used}"
        assert given.sample_with_intermediates(jr.key(0), (2,))[1][0].dtype == f"float{used}"
        assert given.sample_diffusion(jr.key(0), (2,), steps=2).dtype == f"float{used}"
        assert rounded.log_prob(ROWS).dtype == f"float{used}"


@pytest.mark.slow
@BOTH
def test_whatever_takes_a_model_or_a_density_learns_on(learned, used):
    density, _ = made(learned)
    small = {"training": fd.Training(steps=2, batch_size=8), "progress": False}
    with session(used):
        divergence, _ = fd.fit_divergence(jr.key(0), density.model, ROWS, CONTEXTS, **small)
        assert density.with_divergence(divergence).given(CONTEXTS[0]).log_prob(ROWS).dtype == f"float{used}"
        tuned, _ = fd.fit_likelihood(
            jr.key(1), ROWS, CONTEXTS, model=density.model, divergence=fd.ExactDivergence(), tolerance=1e3, **small
        )
        assert tuned.given(CONTEXTS[0]).log_prob(ROWS).dtype == f"float{used}"
        fast, _ = fd.distill(jr.key(2), density.given(CONTEXTS[:4]), labels=64, width=8, **small)
        assert fast.given(CONTEXTS[0]).log_prob(ROWS).dtype == f"float{used}"
