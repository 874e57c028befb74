"""Tables as they are trained on, and as a model that is there already sees them."""

import jax.random as jr
import numpy as np
from numpyro.distributions import constraints
from references import untrained_flow

import flowdensity as fd
from flowdensity.training.prepare import prepare, whitened, whitened_contexts


def test_rows_without_weight_have_no_part_in_the_reach():
    rows = np.random.default_rng(1).normal(size=(300, 2))
    weights = np.ones(300)
    beyond, nothing = np.full((3, 2), 1e6), np.zeros(3)
    with_them = prepare("fit_flow", jr.key(0), np.concatenate([rows, beyond]), None, None, [*weights, *nothing], None)
    without = prepare("fit_flow", jr.key(0), rows, None, None, weights, None)
    np.testing.assert_array_equal(with_them.reach, without.reach)
    np.testing.assert_array_equal(with_them.table.states, without.table.states)
    model = untrained_flow(jr.key(0), rows)
    again = whitened("fit_likelihood", model, np.concatenate([rows, beyond]), None, [*weights, *nothing])
    assert again.states.shape == (300, 2)
    np.testing.assert_allclose(again.weights, 1 / 300, rtol=1e-6)


def test_a_model_that_is_there_sees_the_table_it_was_learned_from():
    """In float32 what is near an edge would be on it, and infinite on the real line."""
    shares = np.append(np.random.default_rng(2).uniform(size=299), 1.0 - 1e-9)
    for data, support in ((shares, constraints.unit_interval), ({"p": shares}, {"p": constraints.unit_interval})):
        parts = prepare("fit_flow", jr.key(0), data, None, support, None, None)
        model = fd.models.GaussianFlow(path=fd.paths.CondOT(), **parts.shared)
        again = whitened("fit_divergence", model, data, None)
        np.testing.assert_allclose(again.states, parts.table.states, rtol=1e-4, atol=1e-5)


def test_contexts_that_are_all_alike_are_enough_for_a_model_that_is_there():
    rng = np.random.default_rng(3)
    model = untrained_flow(jr.key(0), rng.normal(size=(50, 2)), rng.normal(size=(50, 3)))
    found = whitened_contexts("diagnose", model, np.full((4, 3), 0.5), 4)
    assert found.shape == (4, 3)
    assert np.all(np.isfinite(found))
