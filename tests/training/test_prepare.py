"""Preparation of the table and the network for a fit."""

import jax.random as jr
import numpy as np
from references import untrained_flow

from flowdensity.data.whitened import whitened
from flowdensity.training.prepare import prepare


def test_rows_without_weight_have_no_part_in_the_reach():
    rows = np.random.default_rng(1).normal(size=(300, 2))
    weights = np.ones(300)
    beyond, nothing = np.full((3, 2), 1e6), np.zeros(3)
    with_them = prepare("fit_flow", jr.key(0), np.concatenate([rows, beyond]), None, None, [*weights, *nothing], None)
    without = prepare("fit_flow", jr.key(0), rows, None, None, weights, None)
    np.testing.assert_array_equal(with_them.reach, without.reach)
    np.testing.assert_array_equal(with_them.table.states, without.table.states)
    model = untrained_flow(jr.key(0), rows)
    again = whitened(
        "fit_likelihood",
        model.scaling,
        model.context_scaling,
        np.concatenate([rows, beyond]),
        None,
        [*weights, *nothing],
    )
    assert again.states.shape == (300, 2)
    np.testing.assert_allclose(again.weights, 1 / 300, rtol=1e-6)
