"""FlowReparam: the same prior, sampled in its noise."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    SLOPE,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
)
from scipy.stats import multivariate_normal

import flowdensity as fd

SOLVER = fd.FixedStep(8)


def density() -> fd.FlowDensity:
    return fd.FlowDensity(gaussian_flow(), solver=SOLVER)


def given() -> fd.FlowDensity:
    return fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER)


def in_a_plate(fn, size):
    def model():
        with numpyro.plate("rows", size):
            return numpyro.sample("theta", fn())

    return model


# name: (model, shape of theta, shape of its noise, batch shape of the noise's site)
MODELS = {
    "alone": (lambda: numpyro.sample("theta", density()), (2,), (2,), ()),
    "in a plate": (in_a_plate(density, 5), (5, 2), (5, 2), (5,)),
    "amortized": (in_a_plate(lambda: amortized(density()), 5), (5, 2), (5, 2), (5,)),
    "expanded": (lambda: numpyro.sample("theta", density().expand((3, 4))), (3, 4, 2), (3, 4, 2), (3, 4)),
    "one event of many": (
        lambda: numpyro.sample("theta", density().expand((3, 4)).to_event(2)),
        (3, 4, 2),
        (3, 4, 2),
        (),
    ),
    "conditional in a plate": (in_a_plate(given, 4), (4, 2), (4, 2), (4,)),
    "conditional, two plates": (
        lambda: numpyro.sample("theta", given().expand((3, 4)).to_event(1)),
        (3, 4, 2),
        (3, 4, 2),
        (3,),
    ),
}


def trace_of(model):
    model = handlers.reparam(model, config={"theta": fd.FlowReparam()})
    return handlers.trace(handlers.seed(model, jr.key(0))).get_trace()


@pytest.mark.parametrize(("model", "shape", "noise_shape", "batch_shape"), MODELS.values(), ids=MODELS.keys())
def test_the_base_is_sampled_and_the_event_is_deterministic(model, shape, noise_shape, batch_shape):
    trace = trace_of(model)
    base, theta = trace["theta_base"], trace["theta"]
    assert base["type"] == "sample"
    assert not base["is_observed"]
    assert theta["type"] == "deterministic"
    assert theta["value"].shape == shape
    assert base["value"].shape == noise_shape
    assert base["fn"].batch_shape == batch_shape
    np.testing.assert_allclose(
        base["fn"].log_prob(base["value"]),
        np.asarray(dist.Normal().log_prob(base["value"])).sum(tuple(range(len(batch_shape), len(noise_shape)))),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["in a plate", "amortized", "conditional in a plate", "one event of many"])
def test_the_event_is_the_image_of_its_noise(name):
    trace = trace_of(MODELS[name][0])
    fn = given() if "conditional" in name else density()
    np.testing.assert_allclose(
        trace["theta"]["value"], fn.from_base(trace["theta_base"]["value"]), rtol=1e-5, atol=1e-5
    )


def test_the_prior_is_the_same_prior():
    """Moments of theta over seeds of the model, against the closed form."""
    count = 20_000
    model = handlers.reparam(MODELS["conditional in a plate"][0], config={"theta": fd.FlowReparam()})

    @jax.jit
    @jax.vmap
    def draw(key):
        return handlers.trace(handlers.seed(model, key)).get_trace()["theta"]["value"]

    draws = np.asarray(draw(jr.split(jr.key(1), count)), np.float64)
    deviations = np.sqrt(np.diag(GAUSSIAN_COVARIANCE))
    means = GAUSSIAN_MEAN + CONTEXTS @ SLOPE.T
    # 4.5 standard errors for each of 8 means and 4 covariances, and 0.2 % of a deviation for the eight solver steps.
    tolerance = deviations * (4.5 / np.sqrt(count) + 2e-3)
    assert np.all(np.abs(draws.mean(0) - means) < tolerance)
    for i in range(4):
        errors = np.sqrt((GAUSSIAN_COVARIANCE**2 + np.outer(deviations, deviations) ** 2) / count)
        assert np.all(np.abs(np.cov(draws[:, i].T) - GAUSSIAN_COVARIANCE) < 4.5 * errors + 5e-3)


def test_the_posterior_is_the_same_posterior():
    """With z the noise of theta, log p(z) + log p(x | theta(z)) = log p(theta) + log |det dtheta/dz| + log p(x | theta)."""

    def model():
        theta = numpyro.sample("theta", fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(64)))
        numpyro.sample("x", dist.Normal(theta[0], 0.5), obs=0.7)

    noise = jnp.array([0.6, -1.1])
    pushed = handlers.reparam(model, config={"theta": fd.FlowReparam()})
    value, trace = log_density(pushed, (), {}, {"theta_base": noise})
    theta = np.asarray(trace["theta"]["value"], np.float64)
    prior = multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf(theta)
    jacobian = 0.5 * np.linalg.slogdet(GAUSSIAN_COVARIANCE)[1]
    likelihood = -0.5 * ((0.7 - theta[0]) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2.0 * np.pi))
    # 64 third-order steps, (pi/128)^3 = 1.5e-5, magnified by gradients of up to five per unit.
    np.testing.assert_allclose(value, prior + jacobian + likelihood, atol=1e-3)


def test_gradients_reach_the_noise_and_need_no_divergence():
    class Refuses(fd.divergences.AbstractDivergence):
        def __call__(self, model, time, state, context):
            raise AssertionError("a change of variables needs no divergence")

    fn = density().with_divergence(Refuses())
    model = handlers.reparam(lambda: numpyro.sample("theta", fn), config={"theta": fd.FlowReparam()})

    def second(noise):
        _, trace = log_density(model, (), {}, {"theta_base": noise})
        return trace["theta"]["value"][1]

    slope = jax.grad(second)(jnp.zeros(2))
    eigenvalues, vectors = np.linalg.eigh(GAUSSIAN_COVARIANCE)
    root = vectors @ np.diag(np.sqrt(eigenvalues)) @ vectors.T
    np.testing.assert_allclose(slope, root[1], atol=5e-3)  # eight steps


REFUSED = {
    "an observed site": (
        lambda: numpyro.sample("theta", density(), obs=jnp.zeros(2)),
        ValueError,
        "expected site `theta` to be latent",
    ),
    "another distribution": (
        lambda: numpyro.sample("theta", dist.Normal()),
        TypeError,
        "expected site `theta` to have a FlowDensity or an AmortizedDensity; got Normal",
    ),
    "another distribution, wrapped": (
        lambda: numpyro.sample("theta", dist.Normal().expand((3,)).to_event(1)),
        TypeError,
        "got Normal",
    ),
    "a conditional density without its context": (
        lambda: numpyro.sample("theta", fd.FlowDensity(conditional_gaussian_flow())),
        ValueError,
        "expected a context",
    ),
}


@pytest.mark.parametrize(("model", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_it_cannot_do_is_refused(model, error, says):
    with pytest.raises(error, match=rf"{says}.*Fix: "):
        trace_of(model)
