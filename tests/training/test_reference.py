"""The reference of a flow on few rows, and how it is chosen."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIXTURE, paired
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

import flowdensity as fd
from flowdensity.data.scaling import Scaling, fit_scaling
from flowdensity.data.tables import Sample
from flowdensity.models.mixture import GaussianMixture as GaussianMixtureStart
from flowdensity.training.reference import ReferenceChoice, choose_reference, fit_reference, whiten_again


def prepared(events: np.ndarray, weights: np.ndarray | None = None):
    scaling, white = fit_scaling(events, weights=weights)
    return scaling, Sample(
        jnp.asarray(white, float), jnp.zeros((len(white), 0)), None if weights is None else jnp.asarray(weights, float)
    )


def chosen(scaling: Scaling, table: Sample) -> ReferenceChoice | None:
    return choose_reference(jr.key(0), scaling, table, progress=False)


@pytest.mark.slow
def test_clusters_are_found():
    rng = np.random.default_rng(0)
    choice = chosen(*prepared(MIXTURE.sample(rng, 400)))
    assert 2 <= choice.components <= 4
    # What held-out rows gain is what fresh ones do: the truth's lead over one Gaussian, less what the fits miss.
    fresh = MIXTURE.sample(rng, 20_000)
    lead, _ = paired(MIXTURE.log_prob(fresh), multivariate_normal(fresh.mean(0), np.cov(fresh.T)).logpdf(fresh))
    gain, error = choice.gain
    assert lead - 0.15 - 4.0 * error < gain < lead + 4.0 * error


def test_one_gaussian_is_left_as_it_is():
    rows = np.random.default_rng(1).normal(size=(300, 3)) @ np.array(
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]]
    )
    choice = chosen(*prepared(rows))
    assert choice.components == 1
    assert fit_reference(prepared(rows)[1], choice) is None
    assert choice.summary().startswith("reference: the fitted Gaussian; on held-out rows the best mixture is -")


@pytest.mark.parametrize(("rows", "dim"), [(8, 4), (60, 300)])
def test_where_no_mixture_can_be_fitted_there_is_no_choice(rows, dim):
    assert chosen(*prepared(np.random.default_rng(0).normal(size=(rows, dim)))) is None


def test_a_part_is_white_by_its_own_rows():
    """As if the others had never been there: the rows are white already, by all of them."""
    rng = np.random.default_rng(2)
    events = 1e3 + np.array([1.0, 50.0, 1e-3]) * rng.standard_t(5, size=(40, 3)) @ np.array(
        [[1, 0.9, 0], [0, 1, 0], [0, 0.3, 1]]
    )
    scaling, table = prepared(events)
    kept, held = whiten_again(scaling, table.take(jnp.arange(10, 40)), table.take(jnp.arange(10)))
    own, white = fit_scaling(events[10:])
    np.testing.assert_allclose(kept.states, white, atol=1e-4)
    expected = (events[:10] - np.asarray(own.location, np.float64)) @ np.asarray(own.whitener, np.float64).T
    np.testing.assert_allclose(held.states, expected, atol=2e-2)


@pytest.mark.parametrize(("rows", "columns"), [(25, 1), (200, 1)])
def test_a_column_that_varies_in_one_row_alone_is_no_error(rows, columns):
    """Where that row is held out the column is constant in the others."""
    rng = np.random.default_rng(6)
    rare = np.zeros((rows, 1))
    rare[rows // 2] = 1.0
    choice = chosen(*prepared(np.concatenate([rng.normal(size=(rows, columns)), rare], axis=1)))
    assert choice.components == 1
    assert np.all(np.isfinite(choice.gain))


def test_a_column_that_varies_in_one_row_alone_leaves_no_choice():
    """With that row held out there is nothing that a mixture could be fitted to."""
    rare = np.zeros((25, 1))
    rare[12] = 1.0
    assert chosen(*prepared(rare)) is None


def test_rows_that_are_repeated_are_held_out_together():
    rng = np.random.default_rng(7)
    choice = chosen(*prepared(np.repeat(rng.normal(size=(40, 2)), 5, axis=0)))
    assert choice.components == 1


def test_few_rows_that_carry_the_weight_are_few():
    rng = np.random.default_rng(8)
    weights = np.where(np.arange(2_000) < 4, 1.0, 1e-8)
    assert chosen(*prepared(rng.normal(size=(2_000, 2)), weights / weights.sum())) is None


def test_a_row_counts_as_often_as_it_weighs():
    rng = np.random.default_rng(3)
    events = MIXTURE.sample(rng, 100)
    weights = np.tile([0.0, 2.0], 50) / 100.0
    table = Sample(jnp.asarray(events, float), jnp.zeros((100, 0)), jnp.asarray(weights, float))
    start = fit_reference(table, ReferenceChoice(2, 0.01, (0.0, 0.0)))
    again = np.repeat(np.asarray(table.states, np.float64)[1::2], 2, axis=0)
    mixture = GaussianMixture(2, reg_covar=0.01, random_state=0).fit(again)
    np.testing.assert_allclose(jnp.exp(start.log_weights), mixture.weights_, rtol=1e-5)
    np.testing.assert_allclose(start.variances, np.linalg.eigvalsh(mixture.covariances_), rtol=1e-5)


@pytest.mark.slow
def test_a_fit_on_few_rows_starts_there():
    rng = np.random.default_rng(4)
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=16, depth=1, experts=0)
    density, report = fd.fit_flow(
        jr.key(0),
        MIXTURE.sample(rng, 300),
        network=network,
        training=fd.Training(steps=20),
        divergence=fd.ExactDivergence(),
        progress=False,
    )
    assert report.reference.components > 1
    assert density.model.reference.log_weights.shape == (report.reference.components,)
    assert report.summary().splitlines()[:3] == [report.conclusion, report.columns, report.reference.summary()]
    # A mixture has two dozen parameters, and 300 rows tell each of them to half a nat in all: a tenth of a nat a row.
    fresh = MIXTURE.sample(rng, 4_000)
    gap, error = paired(MIXTURE.log_prob(fresh), density.log_prob(np.float32(fresh)))
    assert -4.0 * error < gap < 0.12 + 4.0 * error


@pytest.mark.slow
def test_flows_from_the_gaussian_are_taken_where_they_get_further(monkeypatch):
    """The two sets of flows are compared by the rows that each has not seen; here the mixture is a bad one on purpose."""

    def bad(table, choice):
        return GaussianMixtureStart(np.ones(2), np.array([[9.0, 0.0], [-9.0, 0.0]]), np.tile(np.eye(2), (2, 1, 1)))

    network = fd.networks.ResidualMLP(jr.key(0), 2, width=16, depth=1, experts=0)
    rows = MIXTURE.sample(np.random.default_rng(4), 300)
    options = {
        "network": network,
        "training": fd.Training(steps=100),
        "divergence": fd.ExactDivergence(),
        "progress": False,
    }
    _, report = fd.fit_flow(jr.key(0), rows, **options)
    lead, error = report.reference.lead
    assert report.reference.components > 1
    assert lead > 0.0
    assert f"flows trained from it {lead:+.3f} +- {error:.3f} above" in report.summary()
    monkeypatch.setattr("flowdensity.training.cross_validation.fit_reference", bad)
    density, report = fd.fit_flow(jr.key(0), rows, **options)
    assert report.reference.components == 1
    assert report.reference.lead[0] < -1.0
    assert density.model.reference is None
    # The losses and the gain are those of the flows that were taken.
    history = report.histories["flow"]
    assert history.gain[0] == pytest.approx(2.0 * (history.validation[0] - min(history.validation)), abs=1e-4)


@pytest.mark.slow
def test_with_a_context_or_many_rows_it_starts_at_the_gaussian():
    rng = np.random.default_rng(5)
    options = {"training": fd.Training(steps=2), "divergence": fd.ExactDivergence(), "progress": False}
    network = fd.networks.ResidualMLP(jr.key(0), 2, 1, width=4, depth=1, experts=0)
    events = MIXTURE.sample(rng, 2_000)
    density, report = fd.fit_flow(jr.key(0), events[:100], rng.normal(size=(100, 1)), network=network, **options)
    assert density.model.reference is None
    assert report.reference is None
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=4, depth=1, experts=0)
    density, report = fd.fit_flow(jr.key(0), events, network=network, **options)
    assert density.model.reference is None
    assert report.reference is None
