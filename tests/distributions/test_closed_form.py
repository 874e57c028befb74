"""A velocity whose density is known in closed form, in models, under masks, scales and strict settings, and in worker processes.

It needs no fit: $dx/dt = r x$ carries $N(0, 1)$ to $N(0, e^{2r})$, and $dx/dt = c$ carries it to $N(c, 1)$.
"""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from joblib.externals.loky import ProcessPoolExecutor as LokyExecutor
from numpyro import handlers
from numpyro.infer.util import log_density

import flowdensity as fd

RATES = np.array([0.5, -0.3])
BASE = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
ROWS = np.random.default_rng(0).normal(size=(6, 2))


def stretch(t, x, context):
    return jnp.asarray(RATES, x.dtype) * x


def shift(t, x, context):
    return context


STRETCHED = fd.FlowDensity(fd.VelocityField(stretch, BASE))
SHIFTED = fd.FlowDensity(fd.VelocityField(shift, BASE, context_shape=(2,)))


def normal(mean, scale=1.0):
    return dist.Normal(mean, scale).to_event(1)


def test_log_prob_is_the_closed_form():
    np.testing.assert_allclose(STRETCHED.log_prob(ROWS), normal(0.0, np.exp(RATES)).log_prob(ROWS), atol=1e-5)
    np.testing.assert_allclose(
        SHIFTED.given([1.0, -2.0]).log_prob(ROWS), normal(np.array([1.0, -2.0])).log_prob(ROWS), atol=1e-5
    )


def test_a_sum_over_classes_is_the_closed_form():
    """What enumeration of a discrete latent variable adds up: the density given each of its values."""
    means, classes = jnp.array([[-1.0, 0.0], [1.0, 2.0]]), dist.Categorical(probs=jnp.array([0.3, 0.7]))
    ours = dist.MixtureSameFamily(classes, SHIFTED.given(means))
    np.testing.assert_allclose(
        ours.log_prob(ROWS), dist.MixtureSameFamily(classes, normal(means)).log_prob(ROWS), atol=1e-5
    )


def test_masked_rows_of_nan_leave_value_and_gradient():
    rows = np.where(np.arange(6)[:, None] == 2, np.nan, ROWS)

    def model(given):
        theta = numpyro.sample("theta", BASE)
        with numpyro.plate("rows", 6), handlers.mask(mask=np.isfinite(rows).all(1)):
            numpyro.sample("y", given(jnp.broadcast_to(theta, (6, 2))), obs=rows)

    def both(given):
        return jax.value_and_grad(lambda theta: log_density(model, (given,), {}, {"theta": theta})[0])(jnp.ones(2))

    for ours, theirs in zip(both(SHIFTED.given), both(normal), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales_far_from_one(scale):
    density = fd.FlowDensity(fd.VelocityField(stretch, dist.Normal(0.0, scale).expand([2]).to_event(1)))
    rows = jnp.asarray(scale * ROWS, float)
    expected = normal(0.0, np.exp(RATES)).log_prob(ROWS) - 2.0 * np.log(scale)
    np.testing.assert_allclose(density.log_prob(rows), expected, rtol=1e-5)
    slope = jax.grad(lambda rows: jnp.sum(density.log_prob(rows)))(rows)
    np.testing.assert_allclose(slope * scale, -ROWS / np.exp(2.0 * RATES), rtol=1e-4)
    np.testing.assert_allclose(
        density.to_base(density.sample(jax.random.key(0), (4,))),
        density.base.sample(jax.random.key(0), (4,)),
        atol=1e-5,
    )


def scored(density: fd.FlowDensity) -> np.ndarray:
    """What a worker process does with a density that was sent to it."""
    return np.asarray(density.log_prob(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spawn", "loky"])
def test_a_density_works_in_a_worker_process(kind, monkeypatch):
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    pool = LokyExecutor(1) if kind == "loky" else ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with pool:
        found = pool.submit(scored, STRETCHED).result(timeout=300)
    np.testing.assert_allclose(found, scored(STRETCHED), rtol=1e-6)


STRICT = """
import jax, jax.numpy as jnp, jax.random as jr, numpy as np, numpyro, numpyro.distributions as dist
import flowdensity as fd
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
prior = fd.FlowDensity(fd.VelocityField(lambda t, x, c: 0.5 * x, base), solver=fd.FixedStep(2))
noise = fd.FlowDensity(fd.VelocityField(lambda t, x, c: c, base, context_shape=(2,)), solver=fd.FixedStep(2))
rows = jnp.asarray(np.random.default_rng(0).normal(size=(200, 2)), float)
assert np.isfinite(prior.log_prob(rows)).all()
assert np.isfinite(jax.grad(lambda x: prior.log_prob(x).sum())(rows)).all()
assert np.isfinite(prior.sample(jr.key(0), (3,))).all()

def model():
    theta = numpyro.sample("theta", prior)
    with numpyro.plate("rows", 3):
        numpyro.sample("y", noise.given(jnp.broadcast_to(theta, (3, 2))), obs=rows[:3])

mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
mcmc.run(jr.key(0))
assert np.isfinite(mcmc.get_samples()["theta"]).all()

data = np.random.default_rng(1).gamma(3.0, size=(2100, 2))
network = fd.networks.ResidualMLP(jr.key(1), 2, width=4, depth=1, experts=2)
learned, report = fd.fit_flow(
    jr.key(2), data, support=constraints.positive, network=network, progress=False,
    training=fd.Training(steps=2, batch_size=16),
)
assert np.isfinite(learned.log_prob(data[:3])).all()
"""
SETTINGS = {
    "nans": {"JAX_DEBUG_NANS": "1"},
    "ranks": {"JAX_NUMPY_RANK_PROMOTION": "raise"},
    "keys": {"JAX_ENABLE_CUSTOM_PRNG": "1"},
    "leaks": {"JAX_CHECK_TRACER_LEAKS": "1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_strict_settings(settings):
    """From the import on: log density, gradient, draws, NUTS and a fit."""
    done = subprocess.run(
        [sys.executable, "-c", STRICT], env=os.environ | settings, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
