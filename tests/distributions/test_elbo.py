"""PathGradientELBO: the value of the bound, and the part of its gradient that is not noise."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from scipy.stats import norm

import flowdensity as fd

OBSERVED = np.array([0.9, -0.4, 1.6])
NOISE = 0.5
# In mu and the logarithm of tau: prior N(0, 1), one observation of each with the same noise.
MEAN = OBSERVED / (1.0 + NOISE**2)
DEVIATION = np.sqrt(NOISE**2 / (1.0 + NOISE**2))
EVIDENCE = norm(0.0, np.sqrt(1.0 + NOISE**2)).logpdf(OBSERVED).sum()
AWAY = {"auto_loc": MEAN + jnp.array([0.3, -0.2, 0.4]), "auto_scale": DEVIATION * jnp.array([1.5, 0.8, 1.2])}


def conjugate():
    mu = numpyro.sample("mu", dist.Normal().expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.LogNormal())
    numpyro.sample("y", dist.Normal(mu, NOISE).to_event(1), obs=OBSERVED[:2])
    numpyro.sample("z", dist.Normal(jnp.log(tau), NOISE), obs=OBSERVED[2])


def exact(guide, model) -> dict:
    """Parameters of a guide, initialized, with its location and scale at the exact posterior."""
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
    params = svi.get_params(svi.init(jr.key(0)))
    posterior = {"auto_loc": jnp.asarray(MEAN), "auto_scale": jnp.full(3, DEVIATION)}
    return {name: posterior.get(name, value) for name, value in params.items()}


def over_keys(bound, model, guide, params, count, seed=1):
    """Losses and gradients for each of many keys."""
    one = jax.value_and_grad(lambda p, key: bound.loss(key, p, model, guide))
    return jax.jit(jax.vmap(lambda key: one(params, key)))(jr.split(jr.key(seed), count))


def small_flow() -> fd.AutoFlow:
    return fd.AutoFlow(
        conjugate, network=fd.networks.ResidualMLP(jr.key(2), 3, width=8, depth=1, experts=0), solver=fd.FixedStep(2)
    )


@pytest.mark.parametrize(
    "guide", [AutoDiagonalNormal(conjugate), pytest.param(small_flow(), marks=pytest.mark.slow)], ids=["normal", "flow"]
)
def test_at_the_posterior_its_gradient_vanishes_for_every_key(guide):
    """With respect to all parameters, those of a network too."""
    losses, slopes = over_keys(fd.PathGradientELBO(), conjugate, guide, exact(guide, conjugate), 50)
    np.testing.assert_allclose(losses, -EVIDENCE, rtol=1e-5)
    for slope in jax.tree.leaves(slopes):
        # Differences of scores of a few over 0.45^2, rounded to float32.
        np.testing.assert_allclose(slope, 0.0, atol=1e-4)


def test_at_the_posterior_the_usual_gradient_is_noise():
    guide = AutoDiagonalNormal(conjugate)
    losses, slopes = over_keys(Trace_ELBO(), conjugate, guide, exact(guide, conjugate), 50)
    np.testing.assert_allclose(losses, -EVIDENCE, rtol=1e-5)
    assert np.asarray(slopes["auto_scale"]).std() > 0.1


def plated():
    """Two latents and eight rows in a plate, of which three are seen at a time."""
    mu = numpyro.sample("mu", dist.Normal())
    tau = numpyro.sample("tau", dist.LogNormal())
    rows = jnp.linspace(-1.0, 2.0, 8)
    with numpyro.plate("rows", 8, subsample_size=3) as index:
        numpyro.sample("y", dist.Normal(mu, tau), obs=rows[index])


LOCAL = jnp.linspace(-1.0, 2.0, 6)


def local():
    """A latent in each row of a plate, of which two are seen at a time."""
    with numpyro.plate("rows", 6, subsample_size=2) as index:
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("y", dist.Normal(z, NOISE), obs=LOCAL[index])


def local_guide():
    location = numpyro.param("auto_loc", LOCAL)
    scale = numpyro.param("auto_scale", jnp.ones(6))
    with numpyro.plate("rows", 6, subsample_size=2) as index:
        numpyro.sample("z", dist.Normal(location[index], scale[index]))


# name: (model, guide, parameters away from the posterior)
MODELS = {
    "alone": (conjugate, AutoDiagonalNormal(conjugate), AWAY),
    "a subsampled plate": (
        plated,
        AutoMultivariateNormal(plated),
        {"auto_loc": jnp.array([0.8, -0.3]), "auto_scale_tril": jnp.array([[0.4, 0.0], [0.1, 0.3]])},
    ),
    "a plate of latents": (local, local_guide, {"auto_loc": 0.5 * LOCAL, "auto_scale": jnp.linspace(0.4, 0.7, 6)}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "guide", "params"), MODELS.values(), ids=MODELS.keys())
def test_value_and_gradient_have_the_means_of_the_usual_bound(model, guide, params):
    count = 4000
    if guide is not local_guide:
        SVI(model, guide, optax.adam(1e-2), Trace_ELBO()).init(jr.key(0))
    results = [
        over_keys(bound, model, guide, params, count, seed)
        for seed, bound in ((1, fd.PathGradientELBO()), (2, Trace_ELBO()))
    ]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for path, trace in zip(*map(jax.tree.leaves, results), strict=True):
        path, trace = np.asarray(path, np.float64), np.asarray(trace, np.float64)
        error = np.sqrt((path.var(0) + trace.var(0)) / count)
        assert np.all(np.abs(path.mean(0) - trace.mean(0)) <= 4.5 * error + 1e-6)


@pytest.mark.slow
def test_particles_are_averaged():
    guide = AutoDiagonalNormal(conjugate)
    SVI(conjugate, guide, optax.adam(1e-2), Trace_ELBO()).init(jr.key(0))
    key = jr.key(3)
    mapped, looped = (
        fd.PathGradientELBO(num_particles=5, vectorize_particles=how).loss(key, AWAY, conjugate, guide)
        for how in (True, False)
    )
    alone = [fd.PathGradientELBO().loss(each, AWAY, conjugate, guide) for each in jr.split(key, 5)]
    np.testing.assert_allclose(mapped, looped, rtol=1e-5)
    np.testing.assert_allclose(mapped, np.mean(alone), rtol=1e-5)


def test_it_leads_svi_to_the_posterior():
    guide = AutoDiagonalNormal(conjugate)
    svi = SVI(conjugate, guide, optax.adam(optax.cosine_decay_schedule(0.1, 300)), fd.PathGradientELBO())
    params = svi.run(jr.key(4), 300, progress_bar=False).params
    # Without noise at the optimum one particle is enough to converge to rounding.
    np.testing.assert_allclose(params["auto_loc"], MEAN, atol=1e-3)
    np.testing.assert_allclose(params["auto_scale"], DEVIATION, atol=1e-3)


def test_parameters_of_the_model_are_learned_too():
    """Of a model, whose log density depends on them at a fixed latent, all of the gradient is kept."""

    def model():
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        mu = numpyro.sample("mu", dist.Normal())
        numpyro.sample("y", dist.Normal(mu, scale).expand([3]).to_event(1), obs=OBSERVED)

    guide = AutoDiagonalNormal(model)
    SVI(model, guide, optax.adam(1e-2), Trace_ELBO()).init(jr.key(0))
    params = {"auto_loc": jnp.zeros(1), "auto_scale": jnp.full(1, 0.5), "scale": jnp.asarray(0.8)}
    _, slopes = over_keys(fd.PathGradientELBO(), model, guide, params, 4000)
    # E of the derivative of -log N(y; mu, s) over q: 3/s - (sum (y - m)^2 + 3 v)/s^3.
    expected = 3.0 / 0.8 - (np.sum(OBSERVED**2) + 3.0 * 0.25) / 0.8**3
    draws = np.asarray(slopes["scale"], np.float64)
    assert abs(draws.mean() - expected) < 4.5 * draws.std() / np.sqrt(4000) + 1e-5


def test_mutable_state_is_refused():
    def counting(y):
        state = numpyro.primitives.mutable("state", {"n": jnp.zeros(())})
        state["n"] = state["n"] + 1.0
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal()), 1.0), obs=y)

    def guide(y):
        numpyro.sample("theta", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    svi = SVI(counting, guide, optax.adam(1e-2), fd.PathGradientELBO())
    state = svi.init(jr.key(0), 0.5)
    with pytest.raises(NotImplementedError, match=r"PathGradientELBO expected .*\['state'\].*Fix: .*Trace_ELBO"):
        svi.update(state, 0.5)
