"""Contexts far outside those of the fit are warned about, once for each model."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from references import NAMED_CONTEXT, gaussian_flow, random_flow

import flowdensity as fd
from flowdensity.data.scaling import standardize
from flowdensity.models.flows import off_path
from flowdensity.training.prepare import reach_of

CENTER, SPREAD = np.array([1.0, 0.0, 300.0]), np.array([0.1, 1.0, 50.0])


def contexts(seed: int, count: int) -> np.ndarray:
    return CENTER + SPREAD * np.random.default_rng(seed).normal(size=(count, 3))


def model(*, named: bool = False) -> fd.models.GaussianFlow:
    """An untrained flow that has seen 300 contexts."""
    flow = random_flow(jr.key(0), 2, 3)
    scaling, white = standardize(contexts(0, 300), NAMED_CONTEXT if named else None)
    return fd.models.GaussianFlow(
        flow.network, flow.path, flow.scaling, scaling, flow.reach, context_reach=reach_of(white)
    )


FAR = np.array([1.0, 0.0, 3000.0])


def test_a_far_context_is_warned_about_once_at_the_users_line():
    density = fd.FlowDensity(model())
    with pytest.warns(
        UserWarning, match=r"1 of 4 contexts lie far .*coordinate 2 is 3000, \+5\d(\.\d)? standard"
    ) as caught:
        density.given(np.stack([*contexts(1, 3), FAR]))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.given(2.0 * FAR)
        density.with_divergence(fd.ExactDivergence()).with_solver(fd.FixedStep(2)).given(FAR)
    with pytest.warns(UserWarning, match="1 of 1 contexts"):
        fd.FlowDensity(model(), FAR)


def test_coordinates_have_names():
    far = {"s": np.array([1.0, 40.0]), "t": 300.0}
    with pytest.warns(UserWarning, match=r"1 of 1 contexts.*coordinate 's' is 40, \+"):
        fd.FlowDensity(model(named=True)).given(far)


def test_a_model_that_follows_a_likelihood_has_the_same_reach():
    with pytest.warns(UserWarning, match="1 of 1 contexts"):
        fd.FlowDensity(off_path(model()), FAR)


def test_ordinary_contexts_are_not_warned_about():
    """The reach is 1.5 times the largest radius in 300 rows: no normal context in ten thousand is beyond."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = fd.FlowDensity(model())
        for seed in range(1, 11):
            density.given(contexts(seed, 10_000))
        # Neither a model without a reach nor a missing context has anything to compare.
        fd.FlowDensity(random_flow(jr.key(0), 2, 3)).given(FAR)
        fd.FlowDensity(gaussian_flow())


def test_traced_contexts_are_not_looked_at():
    density = fd.FlowDensity(model(), solver=fd.FixedStep(2))

    def likelihood():
        theta = numpyro.sample("theta", dist.Normal(jnp.asarray(FAR), 1.0).to_event(1))
        numpyro.sample("y", density.given(theta), obs=jnp.zeros(2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda c: density.given(c).log_prob(jnp.zeros(2)))(FAR)
        jax.jit(lambda key: handlers.trace(handlers.seed(likelihood, key)).get_trace()["y"]["value"])(jr.key(0))
