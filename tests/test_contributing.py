"""The examples of CONTRIBUTING.md run, and do what it says of them."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import vmap_over
from numpyro.handlers import seed, trace
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    SLOPE,
    conditional_gaussian_flow,
    gaussian_flow,
    named_flow,
    random_flow,
    to64,
    x64,
)
from scipy.stats import multivariate_normal

import flowdensity as fd

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SOLVER = fd.FixedStep(16)
TEMPERATURE = 0.5


def example(title: str) -> dict:
    """What the one block of code in a section defines."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, flags=re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names = {"__name__": "example"}
    exec(block, names)
    return names


def test_the_example_of_a_path_reaches_both_ends_and_can_be_saved(tmp_path):
    path = example("How to add a path")["PowerPath"](3.0)
    grid = np.asarray(path.grid(8), np.float64)
    np.testing.assert_allclose(grid[[0, -1]], [0.0, 0.5 * np.pi], atol=1e-6)
    # The closed form of its angle.
    noise = (1.0 - np.linspace(0.0, 1.0, 9)) ** 3
    np.testing.assert_allclose(grid, np.arctan2(1.0 - noise, noise), atol=1e-6)
    with pytest.raises(ValueError, match=r"PowerPath expected `power` as a number above 0; got 0\.0.*Fix: power=2\.0"):
        type(path)(0.0)
    density = fd.FlowDensity(random_flow(jr.key(0), 2), solver=SOLVER)
    density = fd.FlowDensity(eqx.tree_at(lambda m: m.path, density.model, path), solver=SOLVER)
    fd.save(tmp_path / "density.flow", density)
    again = fd.load(tmp_path / "density.flow")
    assert again.model.path.power == 3.0
    np.testing.assert_array_equal(again.log_prob(np.zeros(2)), density.log_prob(np.zeros(2)))


@pytest.fixture(scope="module")
def tempered():
    return example("How to add a density")["TemperedDensity"]


def test_the_example_of_a_density_has_its_closed_form(tempered):
    """The flow of a Gaussian is affine: with the noise narrowed by T its covariance is narrowed by T squared."""
    density = tempered(fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER), TEMPERATURE)
    draws = density.sample(jr.key(0), (4000,))
    assert draws.shape == (4000, 4, 2)
    covariance = TEMPERATURE**2 * GAUSSIAN_COVARIANCE
    # Sixteen third-order steps are within 0.005 nats of the flow's density; at a temperature of a half, the log density depends
    # four times as strongly on where the noise is.
    for column, context in enumerate(CONTEXTS):
        expected = multivariate_normal(GAUSSIAN_MEAN + SLOPE @ context, covariance)
        points = np.asarray(draws[:50, column], np.float64)
        np.testing.assert_allclose(density.log_prob(draws[:50])[:, column], expected.logpdf(points), rtol=0, atol=0.02)
        rows = np.asarray(draws[:, column], np.float64)
        errors = np.sqrt(np.diag(covariance) / len(rows))
        assert np.all(np.abs(rows.mean(0) - expected.mean) < 4.5 * errors)
        # Standard error of a covariance entry of a Gaussian: sqrt((s_ij^2 + s_ii s_jj)/n).
        errors = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / len(rows))
        assert np.all(np.abs(np.cov(rows.T) - covariance) < 4.5 * errors)


def test_the_example_of_a_density_behaves_as_a_distribution(tempered):
    flow = fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER)
    density = tempered(flow, TEMPERATURE)
    events = density.sample(jr.key(1))
    values = density.log_prob(events)
    leaves, structure = jax.tree.flatten(density)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.log_prob(events), values)
    mapped = jax.vmap(lambda d, x: d.log_prob(x), in_axes=(vmap_over(density, context=0), 0))(density, events)
    np.testing.assert_allclose(mapped, values, rtol=1e-5, atol=1e-5)
    stack = jax.vmap(lambda t: tempered(fd.FlowDensity(gaussian_flow(), solver=SOLVER), t))(jnp.array([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"TemperedDensity\.log_prob expected one density; got a stack"):
        stack.log_prob(events[0])
    each = jax.vmap(lambda d: d.log_prob(events[0]))(stack)
    np.testing.assert_allclose(each[1], stack_free(events[0]), rtol=1e-5, atol=1e-4)
    assert abs(each[0] - each[1]) > 0.1
    np.testing.assert_array_equal(density.flow.log_prob(events), flow.log_prob(events))
    np.testing.assert_array_equal(density.with_solver(SOLVER).log_prob(events), values)
    assert density.with_divergence(fd.HutchinsonDivergence(jr.key(0))).temperature == TEMPERATURE
    assert repr(density).startswith("<TemperedDensity of shape (2,)")
    with pytest.raises(TypeError, match=r"Fix: density\.sample"):
        density.sample_diffusion(jr.key(0))


def stack_free(event):
    return fd.FlowDensity(gaussian_flow(), solver=SOLVER).log_prob(event)


def test_the_example_of_a_density_is_diagnosed_and_reweighted_by_its_own_log_density(tempered):
    """What is exact for a derived density is its own log density with the exact divergence, and not that of its flow."""
    density = tempered(fd.FlowDensity(gaussian_flow(), solver=SOLVER), TEMPERATURE)
    rows = density.sample(jr.key(3), (300,))
    diagnosis = fd.diagnose(jr.key(4), density, rows, progress=False)
    assert diagnosis.bad == ()
    assert diagnosis["log_prob.rmse"].value == 0.0

    def model():
        numpyro.sample("x", density)

    draws = np.asarray(density.sample(jr.key(5), (4, 250)))
    posterior = xr.Dataset({"x": (("chain", "draw", "dim"), draws)})
    found = fd.reweight(jr.key(6), posterior, model, exact={"x": density}, progress=False)
    # Nothing was wrong, so the weights are equal.
    assert np.ptp(found.log_weights) < 1e-3


def test_the_example_of_a_density_in_models(tempered):
    density = tempered(fd.FlowDensity(named_flow(), solver=SOLVER), TEMPERATURE)
    with seed(rng_seed=0):
        values = fd.sample_sites("joint", density)
    assert set(values) == {"a", "tau", "v"}

    def walk():
        return scan(lambda carry, _: (carry, numpyro.sample("x", density)), 0.0, None, length=3)

    sites = trace(seed(walk, 0)).get_trace()
    assert sites["x"]["fn"].log_prob(sites["x"]["value"]).shape == (3,)


def test_the_example_of_a_divergence_is_within_its_error():
    """In double precision, with a step of 1e-3: 1e-6 times third derivatives of order one, and 1e-13 of rounding."""
    divergence = example("How to add a divergence")["CentralDivergence"]()
    with x64():
        model = to64(random_flow(jr.key(0), 3))
        density = fd.FlowDensity(model, solver=fd.FixedStep(4))
        events = density.sample(jr.key(1), (20,))
        exact, central = density.log_prob(events), density.with_divergence(divergence).log_prob(events)
        np.testing.assert_allclose(central, exact, atol=1e-4)
        assert np.any(central != exact)
    assert not divergence.is_exact
    assert repr(divergence)
