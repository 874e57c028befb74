"""Amortized posteriors of numpyro models, beside exact posteriors."""

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.util import log_density
from scipy.stats import norm

import flowdensity as fd
from flowdensity.inference.joint import joint_model
from flowdensity.inference.refined import systematic

NOISE, ROWS, FEWEST = 0.5, 12, 4


def group_of(idata, group="posterior"):
    """A group of an `InferenceData` or, with arviz 1, of a `DataTree`."""
    return idata[group]


def conjugate(y=None, rows=ROWS):
    """A normal mean with a normal prior, whose posterior is normal."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", rows):
        numpyro.sample("y", dist.Normal(mu, NOISE), obs=y)


def exact(y):
    """Mean and standard deviation of the posterior of `conjugate`."""
    precision = 1.0 + len(y) / NOISE**2
    return np.sum(y) / NOISE**2 / precision, precision**-0.5


def scales(y=None):
    """Two latent sites with different supports, and a site that depends on both."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, tau).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, 0.3).to_event(1), obs=y)


@pytest.fixture(scope="module")
def posterior():
    encoder = fd.encoders.DeepSet(jr.key(1), fewest=FEWEST)
    found, _ = fd.fit_posterior(
        jr.key(0),
        conjugate,
        observed="y",
        num_simulations=3000,
        encoder=encoder,
        training=fd.Training(steps=600),
        progress=False,
    )
    return found


def data_of(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal() + NOISE * rng.normal(size=rows)


@pytest.mark.parametrize("rows", [FEWEST, ROWS])
def test_the_learned_posterior_is_close_and_its_refinement_exact(posterior, rows):
    y = data_of(rows)
    mean, sd = exact(y)
    learned = group_of(posterior.draw(jr.key(2), {"y": y}, 2000))["mu"].to_numpy()
    assert learned.shape == (1, 2000)
    assert abs(learned.mean() - mean) < 0.25 * sd
    assert 0.8 < learned.std() / sd < 1.25
    refined = posterior.refine(jr.key(3), {"y": y}, 2000, progress=False)
    draws = group_of(refined.posterior)["mu"].to_numpy().ravel()
    assert refined.method == "weights"
    assert refined.effective_draws > 10_000
    # Five standard errors of a mean and of a standard deviation, from the effective draws.
    size = min(2000, refined.effective_draws)
    assert abs(draws.mean() - mean) < 5.0 * sd / np.sqrt(size)
    assert abs(draws.std() / sd - 1.0) < 5.0 / np.sqrt(2.0 * size)


def test_where_weights_fail_nuts_samples_the_exact_posterior(posterior):
    """Data far from all simulations."""
    y = 9.0 + NOISE * np.random.default_rng(1).normal(size=ROWS)
    mean, sd = exact(y)
    with pytest.warns(UserWarning, match="not like those of the fit"):
        refined = posterior.refine(jr.key(4), {"y": y}, 2000, progress=False)
    assert refined.method == "NUTS"
    assert "NUTS sampled" in refined.summary()
    draws = group_of(refined.posterior)["mu"].to_numpy()
    assert draws.shape == (4, 500)
    size = refined.effective_draws
    assert abs(draws.mean() - mean) < 5.0 * sd / np.sqrt(size)
    assert abs(draws.std() / sd - 1.0) < 5.0 / np.sqrt(2.0 * size)


def test_more_rows_than_in_the_simulations_warn(posterior):
    with pytest.warns(UserWarning, match=f"have {2 * ROWS} rows, and those of the fit {FEWEST} to {ROWS}"):
        density = posterior.given({"y": data_of(2 * ROWS)})
    assert np.isfinite(density.log_prob(jnp.zeros(1)))


def test_a_model_with_more_rows_than_those_of_the_fit(posterior):
    longer = fd.results.AmortizedPosterior.of(
        posterior.density, conjugate, model_kwargs={"rows": 2 * ROWS}, observed="y"
    )
    with pytest.warns(UserWarning, match=f"have {2 * ROWS} rows"):
        assert np.isfinite(longer.given({"y": data_of(2 * ROWS)}).log_prob(jnp.zeros(1)))
    few = {"y": data_of(8)}
    np.testing.assert_allclose(
        longer.given(few).log_prob(jnp.zeros(1)), posterior.given(few).log_prob(jnp.zeros(1)), rtol=1e-5
    )


def test_the_check_finds_no_fault_in_a_sound_posterior(posterior):
    check = posterior.check(jr.key(5), 200, 99, progress=False)
    assert check.ranks["mu"].shape == (200,)
    assert not check.bad
    pit = group_of(check.to_arviz(), "prior_sbc")
    assert set(pit.data_vars) == {"mu", "expected_coverage"}
    assert float(pit["mu"].min()) > 0.0
    assert float(pit["mu"].max()) < 1.0


def test_the_joint_density_is_that_of_numpyro():
    joint = joint_model("fit_posterior", scales, (), None, "y", None)
    values = {"tau": jnp.asarray(0.7), "theta": jnp.array([0.1, -0.4, 1.2])}
    y = jnp.array([0.3, 0.2, 1.0])
    expected, _ = log_density(scales, (), {"y": y}, values)
    np.testing.assert_allclose(joint.log_density(values, {"y": y}), expected, rtol=1e-5)


def test_absent_rows_leave_the_joint_density_of_the_others():
    joint = joint_model("fit_posterior", conjugate, (), None, "y", None)
    y = data_of(5)
    padded = np.concatenate([y, np.full(ROWS - 5, np.nan)])
    expected, _ = log_density(lambda y: conjugate(y, 5), (jnp.asarray(y, float),), {}, {"mu": jnp.asarray(0.3)})
    value, slope = jax.value_and_grad(lambda mu: joint.log_density({"mu": mu}, {"y": jnp.asarray(padded, float)}))(0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, -0.3 + np.sum(y - 0.3) / NOISE**2, rtol=1e-4)


def autoregression(y=None, steps=6):
    """A series by numpyro's `scan`."""
    phi = numpyro.sample("phi", dist.Uniform(-0.9, 0.9))

    def step(last, value):
        new = numpyro.sample("y", dist.Normal(phi * last, 1.0), obs=value)
        return new, new

    scan(step, 0.0, y, length=steps)


def test_the_joint_density_of_a_scan():
    joint = joint_model("fit_posterior", autoregression, (), None, "y", None)
    y = np.random.default_rng(0).normal(size=6)
    before = np.concatenate([[0.0], y[:-1]])
    expected = norm.logpdf(y, 0.4 * before).sum() - np.log(1.8)
    np.testing.assert_allclose(
        joint.log_density({"phi": jnp.asarray(0.4)}, {"y": jnp.asarray(y, float)}), expected, rtol=1e-5
    )
    absent = np.where(np.arange(6) < 4, y, np.nan)
    expected = norm.logpdf(y[:4], 0.4 * before[:4]).sum() - np.log(1.8)
    np.testing.assert_allclose(
        joint.log_density({"phi": jnp.asarray(0.4)}, {"y": jnp.asarray(absent, float)}), expected, rtol=1e-5
    )


def test_a_scan_with_its_data_cannot_simulate():
    with pytest.raises(ValueError, match="within a `scan`"):
        fd.fit_posterior(jr.key(0), autoregression, (np.zeros(6),), observed="y")


def test_systematic_resampling():
    """Each draw is taken its expected number of times, rounded up or down, and draws of small weight at most once."""
    rng = np.random.default_rng(0)
    weights = rng.gamma(0.5, size=1000)
    weights /= weights.sum()
    counts = np.bincount(systematic(jr.key(0), weights, 100), minlength=1000)
    assert counts.sum() == 100
    assert np.all(counts >= np.floor(100 * weights - 1e-4))
    assert np.all(counts <= np.ceil(100 * weights + 1e-4))
    many = np.mean([np.bincount(systematic(jr.key(k), weights, 100), minlength=1000) for k in range(400)], axis=0)
    # Five standard errors of a mean of 400 numbers that are 0 or 1 beyond a constant.
    assert np.max(np.abs(many - 100 * weights)) < 5.0 * 0.5 / 20.0


def test_latents_and_supports():
    joint = joint_model("fit_posterior", scales, (), None, "y", "tau")
    assert list(joint.latents) == ["tau"]
    assert joint.latents["tau"] is constraints.positive
    assert joint.nuisance == ("theta",)
    simulated = joint.simulate(jr.key(0), 2500, progress=False)
    assert simulated["tau"].shape == (2500,)
    assert simulated["y"].shape == (2500, 3)
    # The Kolmogorov-Smirnov distance of 2,500 draws exceeds 0.039 once in a thousand.
    ordered = np.sort(simulated["tau"])
    assert np.max(np.abs(2.0 * norm.cdf(ordered) - 1.0 - (np.arange(2500) + 0.5) / 2500)) < 0.039


def improper(y=None):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def subsampled(y=None):
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("rows", 10, subsample_size=3):
        numpyro.sample("y", dist.Normal(mu, 1.0))


def factored(y=None):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.factor("penalty", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def moving(y=None):
    high = numpyro.sample("high", dist.Uniform(1.0, 2.0))
    numpyro.sample("mu", dist.Uniform(0.0, high))
    numpyro.sample("y", dist.Normal(high, 1.0), obs=y)


def also(y=None):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("z", dist.Normal(mu, 1.0), obs=0.3)
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def overflowing(y=None):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.where(mu > 2.0, jnp.inf, mu), 1.0), obs=y)


def missing(y):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


BAD = {
    "no such site": (conjugate, {"observed": "z"}, "names of sample sites"),
    "nothing observed": (conjugate, {"observed": ()}, "names of sample sites"),
    "an improper prior": (improper, {"observed": "y"}, "proper priors"),
    "a subsampled plate": (subsampled, {"observed": "y"}, "without subsampling"),
    "a factor": (factored, {"observed": "y"}, "can simulate its data"),
    "a moving support": (moving, {"observed": "y"}, "same in every simulation"),
    "another observed site": (also, {"observed": "y"}, "also observes"),
    "an unknown latent site": (conjugate, {"observed": "y", "latents": "tau"}, "continuous latent sites"),
    "data without a plate": (
        lambda y: missing(y),
        {"observed": "y", "model_args": (np.zeros(5),)},
        "with the shape of its data",
    ),
    "no simulations": (conjugate, {"observed": "y", "num_simulations": 0}, "num_simulations"),
    "values that overflow": (overflowing, {"observed": "y"}, "finite simulations"),
}


@pytest.mark.parametrize(("model", "options", "message"), BAD.values(), ids=BAD)
def test_bad_models(model, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fd.fit_posterior(jr.key(0), model, **options, progress=False)
    assert "Fix:" in str(caught.value)


def test_latents_of_rows_whose_order_is_not_seen():
    def groups(y=None):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("measurements", 3), numpyro.plate("rows", 5):
            numpyro.sample("noise", dist.Normal())
        with numpyro.plate("rows", 5):
            theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    message = r"got \['noise', 'theta'\] in the plate of the rows. .* Fix: latents = \['mu'\]"
    with pytest.raises(ValueError, match=message):
        fd.fit_posterior(jr.key(0), groups, observed="y", encoder=fd.encoders.DeepSet(jr.key(1)))


def test_refinement_needs_all_latent_sites():
    found, report = fd.fit_posterior(
        jr.key(0),
        scales,
        observed="y",
        latents="tau",
        num_simulations=300,
        training=fd.Training(steps=20),
        progress=False,
    )
    assert "integrated out by simulation: theta" in report.summary()
    with pytest.raises(ValueError, match="were integrated out"):
        found.refine(jr.key(1), {"y": np.zeros(3)})
    draws = group_of(found.draw(jr.key(1), {"y": np.zeros(3)}, 10))
    assert np.all(np.asarray(draws["tau"]) > 0.0)
    assert np.isfinite(az.summary(found.draw(jr.key(2), {"y": np.zeros(3)}, 100))["mean"].astype(float)).all()
