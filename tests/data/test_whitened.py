"""Tables in the whitened coordinates of a model that exists."""

import jax.random as jr
import numpy as np
from numpyro.distributions import constraints
from references import untrained_flow

import flowdensity as fd
from flowdensity.data.whitened import whitened, whitened_contexts
from flowdensity.training.prepare import prepare


def test_a_table_is_whitened_as_the_fit_did():
    """In float32 a row near an edge of the support would be on it, and infinite on the real line."""
    shares = np.append(np.random.default_rng(2).uniform(size=299), 1.0 - 1e-9)
    for data, support in ((shares, constraints.unit_interval), ({"p": shares}, {"p": constraints.unit_interval})):
        parts = prepare("fit_flow", jr.key(0), data, None, support, None, None)
        model = fd.models.GaussianFlow(path=fd.paths.CondOT(), **parts.shared)
        again = whitened("fit_divergence", model.scaling, model.context_scaling, data, None)
        np.testing.assert_allclose(again.states, parts.table.states, rtol=1e-4, atol=1e-5)


def test_constant_contexts_can_be_whitened():
    rng = np.random.default_rng(3)
    model = untrained_flow(jr.key(0), rng.normal(size=(50, 2)), rng.normal(size=(50, 3)))
    found = whitened_contexts("diagnose", model.context_scaling, np.full((4, 3), 0.5), 4)
    assert found.shape == (4, 3)
    assert np.all(np.isfinite(found))
