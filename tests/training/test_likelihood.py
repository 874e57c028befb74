"""Maximum likelihood, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import small_network
from numpyro.distributions import constraints
from references import ExactGaussianFlow, paired, random_flow
from scipy.stats import multivariate_normal

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.divergence.stochastic import MAX_EXACT_DIMENSION
from flowdensity.training.likelihood import negative_log_likelihood


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Bent, of mean and variance about (0, 1) in both coordinates; its log density is `bent_log_prob`."""
    first, second = np.random.default_rng(seed).normal(size=(2, count))
    return np.stack([first, 0.6 * (np.square(first) - 1.0) + 0.5 * second], 1)


def bent_log_prob(x: np.ndarray) -> np.ndarray:
    second = (x[:, 1] - 0.6 * (np.square(x[:, 0]) - 1.0)) / 0.5
    return -0.5 * np.square(x[:, 0]) - 0.5 * np.square(second) - np.log(2.0 * np.pi * 0.5)


def test_the_loss_is_minus_the_log_density():
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    model = ExactGaussianFlow(np.array([0.5, -1.0]), covariance)
    events = np.random.default_rng(0).normal(size=(50, 2))
    states = jax.vmap(lambda x: model.scaling.whiten(x)[0])(jnp.asarray(events, float))
    loss = negative_log_likelihood(model, Sample(states, jnp.zeros((50, 0))), jr.key(0))
    # ExactGaussianFlow has the mean of its data in its scaling: its states are events less that mean.
    exact = multivariate_normal(np.zeros(2), covariance).logpdf(np.asarray(states))
    np.testing.assert_allclose(loss, -exact.mean() / 2.0, atol=2e-3)  # eight steps of the solver


@pytest.mark.slow
def test_probes_leave_the_loss_unbiased():
    dim = MAX_EXACT_DIMENSION + 1
    model = random_flow(jr.key(0), dim, size=0.3)
    states = jr.normal(jr.key(1), (16, dim))
    sample = Sample(states, jnp.zeros((16, 0)))
    probed = np.asarray(
        jax.lax.map(lambda k: negative_log_likelihood(model, sample, k), jr.split(jr.key(2), 400), batch_size=20)
    )
    density = fd.FlowDensity(model, solver=fd.FixedStep(8))
    exact = -np.asarray(density.log_prob(states), np.float64).mean() / dim
    assert probed.std() > 1e-4  # each key has probes of its own
    assert abs(probed.mean() - exact) < 4.5 * probed.std() / np.sqrt(400) + 1e-5


@pytest.fixture(scope="module")
def trained() -> tuple[fd.FlowDensity, fd.results.FitReport]:
    """A continuous normalizing flow from the start, with its divergence distilled on its own trajectories."""
    return fd.fit_likelihood(
        jr.key(0),
        rows(3000),
        network=small_network(1, 2),
        divergence=fd.objectives.LangevinStein(),
        training=fd.Training(steps=200, batch_size=128),
        progress=False,
    )


@pytest.mark.slow
def test_a_density_is_learned_by_maximum_likelihood(trained):
    """Nine tenths of what the fitted Gaussian leaves out."""
    density, report = trained
    fresh = rows(2000, 1)
    exact = np.asarray(density.with_divergence(fd.ExactDivergence()).log_prob(np.float32(fresh)), np.float64)
    gaussian = multivariate_normal(rows(3000).mean(0), np.cov(rows(3000).T)).logpdf(fresh)
    left_out, _ = paired(bent_log_prob(fresh), gaussian)
    missing, error = paired(bent_log_prob(fresh), exact)
    assert missing - 4.5 * error < 0.1 * left_out
    assert missing > -4.5 * error
    assert isinstance(density.model, fd.models.GaussianFlow)
    assert not density.model.follows_path
    losses = report.losses["likelihood"]
    assert losses["validation"].min() < losses["validation"][0] - 0.05


@pytest.mark.slow
def test_its_divergence_is_learned_on_its_own_trajectories(trained):
    density, report = trained
    fresh = np.float32(rows(1000, 2))
    exact = density.with_divergence(fd.ExactDivergence())
    reference = np.asarray(exact.log_prob(fresh), np.float64)
    learned = np.asarray(density.log_prob(fresh), np.float64) - reference
    probed = np.asarray(exact.with_divergence(fd.HutchinsonDivergence(jr.key(3))).log_prob(fresh), np.float64)
    assert np.sqrt(np.mean(np.square(learned))) < np.sqrt(np.mean(np.square(probed - reference))) / 5.0
    assert set(report.histories) == {"likelihood", "divergence"}


@pytest.mark.slow
def test_a_flow_is_tuned_on_its_likelihood(monkeypatch):
    """A flow stopped far too early comes closer to the truth, and is not itself changed."""
    monkeypatch.setattr("flowdensity.training.departure.choose_reference", lambda *args, **options: None)
    data, fresh = rows(3000), rows(2000, 1)
    start, _ = fd.fit_flow(
        jr.key(0),
        data,
        network=small_network(1, 2),
        divergence=fd.ExactDivergence(),
        training=fd.Training(steps=60),
        progress=False,
    )
    before = np.asarray(start.log_prob(np.float32(fresh)), np.float64)
    tuned, _ = fd.fit_likelihood(
        jr.key(1), data, model=start.model, training=fd.Training(steps=60, batch_size=128, learning_rate=2e-3),
        divergence=fd.ExactDivergence(), progress=False,
    )  # fmt: skip
    gain, error = paired(tuned.log_prob(np.float32(fresh)), before)
    assert gain > 4.5 * error
    np.testing.assert_array_equal(np.asarray(start.log_prob(np.float32(fresh)), np.float64), before)


@pytest.mark.slow
def test_only_the_network_is_trained():
    """Base, scaling and time of a velocity of one's own stay as they are."""
    velocity = jax.tree_util.Partial(lambda w, t, x, context: x * w, jnp.array([0.1, -0.2]))
    model = fd.VelocityField(velocity, base=dist.Normal(0, 1).expand([2]).to_event(1))
    data = np.random.default_rng(0).normal(size=(500, 2)) * np.array([2.0, 0.5])
    density, _ = fd.fit_likelihood(
        jr.key(0),
        data,
        model=model,
        divergence=fd.ExactDivergence(),
        training=fd.Training(steps=150, learning_rate=0.05),
        progress=False,
    )
    assert isinstance(density.model, fd.VelocityField)
    # x = exp(w) z: the maximum is at the logarithm of the standard deviations, to the square root of 1 / (2 n).
    np.testing.assert_allclose(density.model.network.args[0], np.log([2.0, 0.5]), atol=4.5 / np.sqrt(1000.0))
    np.testing.assert_array_equal(density.model.scaling.location, model.scaling.location)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"support": constraints.real}, "expected `model` or `support`"),
        ({"network": fd.networks.ResidualMLP(jr.key(0), 2)}, "expected `model` or `network`"),
    ],
    ids=["support", "network"],
)
def test_a_model_has_its_own_support_and_network(options, says):
    with pytest.raises(ValueError, match=rf"fit_likelihood {says}.*Fix:"):
        fd.fit_likelihood(jr.key(0), rows(50), model=random_flow(jr.key(0), 2), **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": rows(50)[:, :1], "model": random_flow(jr.key(0), 2)}, r"expected `data` with shape \(n, 2\)"),
        ({"data": rows(50), "training": 100}, "expected `training` of type Training; got 100"),
    ],
    ids=["shape", "training"],
)
def test_bad_input_is_refused(options, says):
    with pytest.raises((TypeError, ValueError), match=rf"fit_likelihood {says}.*Fix:"):
        fd.fit_likelihood(jr.key(0), **options)


def test_an_objective_that_needs_a_score_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("flowdensity.training.fit.maximize_likelihood", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(TypeError, match=r"ScoreStein expected a model that follows .*trained on its likelihood.*Fix: "):
        fd.fit_likelihood(
            jr.key(0), rows(50), model=random_flow(jr.key(0), 2), divergence=fd.objectives.ScoreStein(), progress=False
        )


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"fit_likelihood expected `model` of type AbstractProbabilityFlow.*Fix:"):
        fd.fit_likelihood(jr.key(0), rows(50), model=small_network(0, 2))
