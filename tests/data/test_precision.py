import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

from flowdensity.data.precision import limits
from flowdensity.data.scaling import fit_scaling


@pytest.mark.parametrize("law", ["normal", "t2", "uniform"])
@pytest.mark.parametrize("end", [0, 1], ids=["small", "large"])
def test_whitening_and_its_gradient_are_finite_up_to_the_limits(law, end):
    rng = np.random.default_rng(0)
    table = {"normal": rng.normal, "t2": lambda size: rng.standard_t(2.0, size), "uniform": rng.random}[law](
        size=(600, 2)
    )
    sizes = np.abs(table)
    ends = np.median(sizes) if end == 0 else sizes.max()
    table = table * limits(constraints.real)[end] / ends
    scaling, white = fit_scaling(table)
    rows = jnp.asarray(table, float)
    states, log_dets = jax.vmap(scaling.whiten)(rows)
    np.testing.assert_allclose(states, white, atol=1e-4)
    assert np.isfinite(log_dets).all()
    gradients = jax.vmap(jax.jacobian(lambda row: scaling.whiten(row)[0]))(rows)
    assert np.isfinite(gradients).all()
    np.testing.assert_allclose(
        jax.vmap(scaling.unwhiten)(states) / ends, rows / ends, rtol=1e-3, atol=1e-3 * np.abs(rows).max() / ends
    )
