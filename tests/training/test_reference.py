"""The reference of a flow, and how it is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIXTURE, paired, untrained_flow
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

import flowdensity as fd
from flowdensity.data.scaling import Scaling, fit_scaling
from flowdensity.data.statistics import mean_and_error
from flowdensity.data.tables import Sample
from flowdensity.data.whitened import whitened
from flowdensity.references.choice import NUM_FOLDS, ReferenceChoice, choose_reference, whiten_again
from flowdensity.references.fit import fit_reference
from flowdensity.training import departure
from flowdensity.training.folds import HeldRows, stack


def prepared(events: np.ndarray, weights: np.ndarray | None = None):
    scaling, white = fit_scaling(events, weights=weights)
    return scaling, Sample(
        jnp.asarray(white, float), jnp.zeros((len(white), 0)), None if weights is None else jnp.asarray(weights, float)
    )


def chosen(scaling: Scaling, table: Sample) -> ReferenceChoice | None:
    return choose_reference(jr.key(0), scaling, table, folds=NUM_FOLDS)


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
    assert choice.components is None
    gain, error = choice.gain
    assert choice.summary() == (
        "reference: the fitted Gaussian, because held-out rows are not clearly more likely under a mixture of Gaussians than "
        "under one Gaussian; log density per held-out row under the mixture: "
        f"{gain:+.3f} +- {error:.3f} nats relative to one Gaussian"
    )


@pytest.mark.parametrize(("rows", "dim"), [(8, 4), (15, 1), (60, 300)])
def test_where_no_mixture_can_be_fitted_there_is_no_choice(rows, dim):
    assert chosen(*prepared(np.random.default_rng(0).normal(size=(rows, dim)))) is None


@pytest.mark.parametrize(
    ("components", "lead", "says"),
    [
        (3, None, "a mixture of 3 Gaussians, because held-out rows are more likely under it than under one Gaussian;"),
        (3, 0.5, "a mixture of 3 Gaussians, because held-out rows are more likely under it than under the flow"),
        (1, 0.5, "the regression on the context, because held-out rows are more likely under it than under the flow"),
        (None, -0.5, "the fitted Gaussian, because held-out rows are not clearly more likely under a mixture"),
        (None, None, "the fitted Gaussian, since the fit stopped before a mixture of Gaussians was compared"),
    ],
)
def test_a_choice_says_why(components, lead, says):
    choice = ReferenceChoice(components, 0.01, (1.25, 0.1), None if lead is None else (lead, 0.2))
    summary = choice.summary()
    assert summary.startswith(f"reference: {says}")
    compared = "" if lead is None else f", {lead:+.3f} +- 0.200 nats relative to that flow"
    assert summary.endswith(f"under the mixture: +1.250 +- 0.100 nats relative to one Gaussian{compared}")


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
    assert choice.components is None
    assert np.all(np.isfinite(choice.gain))


def test_a_column_that_varies_in_one_row_alone_leaves_no_choice():
    """With that row held out there is nothing that a mixture could be fitted to."""
    rare = np.zeros((25, 1))
    rare[12] = 1.0
    assert chosen(*prepared(rare)) is None


def test_rows_that_are_repeated_are_held_out_together():
    rng = np.random.default_rng(7)
    choice = chosen(*prepared(np.repeat(rng.normal(size=(40, 2)), 5, axis=0)))
    assert choice.components is None


def test_few_rows_that_carry_the_weight_are_few():
    rng = np.random.default_rng(8)
    weights = np.where(np.arange(2_000) < 4, 1.0, 1e-8)
    assert chosen(*prepared(rng.normal(size=(2_000, 2)), weights / weights.sum())) is None


def test_a_row_counts_as_often_as_it_weighs():
    rng = np.random.default_rng(3)
    events = MIXTURE.sample(rng, 100)
    weights = np.tile([0.0, 2.0], 50) / 100.0
    table = Sample(jnp.asarray(events, float), jnp.zeros((100, 0)), jnp.asarray(weights, float))
    start = fit_reference(table, 2, 0.01).reference()
    again = np.repeat(np.asarray(table.states, np.float64)[1::2], 2, axis=0)
    mixture = GaussianMixture(2, reg_covar=0.01, random_state=0).fit(again)
    np.testing.assert_allclose(jnp.exp(start.log_weights), mixture.weights_, rtol=1e-5)
    np.testing.assert_allclose(start.variances, np.linalg.eigvalsh(mixture.covariances_), rtol=1e-5)


OPTIONS = {"divergence": fd.ExactDivergence(), "progress": False}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [300, 3_000])
def test_a_fit_departs_from_a_mixture_that_is_nearly_the_truth(rows):
    rng = np.random.default_rng(4)
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=16, depth=1, experts=0)
    density, report = fd.fit_flow(
        jr.key(0), MIXTURE.sample(rng, rows), network=network, training=fd.Training(steps=20), **OPTIONS
    )
    assert report.reference.components > 1
    assert density.model.reference.log_weights.shape == (report.reference.components,)
    lead, error = report.reference.lead
    assert lead > error
    assert f"nats relative to one Gaussian, {lead:+.3f} +- {error:.3f} nats relative to that flow" in report.summary()
    assert report.summary().splitlines()[:3] == [report.conclusion, report.columns, report.reference.summary()]
    # A mixture has two dozen parameters, each of which costs half a nat over all rows: less than a tenth of a nat a row.
    fresh = MIXTURE.sample(rng, 4_000)
    gap, error = paired(MIXTURE.log_prob(fresh), density.log_prob(np.float32(fresh)))
    assert -4.0 * error < gap < 0.12 + 4.0 * error


@pytest.mark.slow
@pytest.mark.parametrize("rows", [300, 3_000])
def test_the_gaussian_is_the_reference_where_a_flow_from_it_gets_further(monkeypatch, rows):
    """The mixture is a bad one on purpose."""
    fitted = departure.fit_reference

    def bad(table, **options):
        good = fitted(table, **options)
        return dataclasses.replace(good, means=good.means + 3.0)

    monkeypatch.setattr(departure, "fit_reference", bad)
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=16, depth=1, experts=0)
    density, report = fd.fit_flow(
        jr.key(0),
        MIXTURE.sample(np.random.default_rng(4), rows),
        network=network,
        training=fd.Training(steps=100),
        **OPTIONS,
    )
    assert report.reference.components is None
    assert report.reference.lead[0] < -1.0
    assert density.model.reference is None


# Given a context ---------------------------------------------------------------------------------


def with_contexts(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Events of two branches, whose shares and means depend on the context."""
    contexts = rng.normal(size=(rows, 3))
    up = rng.random(rows) < 1.0 / (1.0 + np.exp(-2.0 * contexts[:, 0]))
    means = np.where(up, 2.0, -2.0)[:, None] + contexts[:, :1] * [1.0, -0.5] + contexts[:, 1:2] * [0.0, 0.5]
    return means + 0.5 * rng.normal(size=(rows, 2)), contexts


def test_a_conditional_mixture_is_the_joint_one_given_the_context():
    events, contexts = with_contexts(np.random.default_rng(0), 500)
    table = Sample(jnp.asarray(events, float), jnp.asarray(contexts, float))
    fitted = fit_reference(table, 3, 0.01)
    reference = fitted.reference()
    log_prob = jax.vmap(lambda state, context: reference.given(context).log_prob(state))
    np.testing.assert_allclose(log_prob(table.states, table.contexts), fitted.log_densities(table), atol=2e-4)
    # It is normalized: the midpoint rule is exact to far below the tolerance for components no narrower than 0.3.
    axis = jnp.arange(-10.0, 10.0, 0.1) + 0.05
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for context in table.contexts[:3]:
        values = jax.vmap(reference.given(context).log_prob)(grid)
        assert float(jnp.sum(jnp.exp(values)) * 0.01) == pytest.approx(1.0, abs=1e-3)


def test_one_component_is_the_regression_on_the_context():
    rng = np.random.default_rng(1)
    contexts = rng.normal(size=(4_000, 2))
    slopes = np.array([[1.0, -0.5], [0.3, 0.8]])
    events = contexts @ slopes.T + rng.normal(size=(4_000, 2)) * [0.5, 0.2]
    reference = fit_reference(Sample(jnp.asarray(events, float), jnp.asarray(contexts, float)), 1, 0.0).reference()
    given = reference.given(jnp.asarray([1.0, -1.0]))
    mean = np.asarray(jnp.einsum("ij,j->i", given.axes[0], given.centers[0]))
    # The standard error of a fitted value is sigma times the root of (1 + |c|^2)/n.
    errors = np.array([0.5, 0.2]) * np.sqrt(3.0 / 4_000)
    assert np.all(np.abs(mean - slopes @ [1.0, -1.0]) < 4.5 * errors)
    np.testing.assert_allclose(np.sort(given.variances[0]), [0.04, 0.25], rtol=4.5 * np.sqrt(2.0 / 4_000))


def test_contexts_that_predict_nothing_leave_the_fitted_gaussian():
    rng = np.random.default_rng(2)
    scaling, table = prepared(rng.normal(size=(300, 2)))
    choice = chosen(scaling, table._replace(contexts=jnp.asarray(rng.normal(size=(300, 4)), float)))
    assert choice.components is None


@pytest.mark.slow
@pytest.mark.parametrize("rows", [200, 3_000])
def test_a_conditional_fit_departs_from_a_conditional_mixture(rows):
    rng = np.random.default_rng(5)
    network = fd.networks.ResidualMLP(jr.key(0), 2, 3, width=8, depth=1, experts=0)
    density, report = fd.fit_flow(
        jr.key(0), *with_contexts(rng, rows), network=network, training=fd.Training(steps=10), **OPTIONS
    )
    assert report.reference.components >= 2
    assert isinstance(density.model.reference, fd.models.ConditionalMixture)
    # The score is close to that of the truth, whose entropy given the context has a closed form but for the branches' overlap.
    events, contexts = with_contexts(rng, 4_000)
    up = 1.0 / (1.0 + np.exp(-2.0 * contexts[:, 0]))
    branches = [
        multivariate_normal(np.zeros(2), 0.25 * np.eye(2)).logpdf(
            events - side - contexts[:, :1] * [1.0, -0.5] - contexts[:, 1:2] * [0.0, 0.5]
        )
        for side in (2.0, -2.0)
    ]
    truth = np.logaddexp(np.log(up) + branches[0], np.log1p(-up) + branches[1])
    gap, error = paired(truth, density.given(np.float32(contexts)).log_prob(np.float32(events)))
    # Two components have two dozen parameters, and joint normality of context and branch is only nearly so.
    assert -4.0 * error < gap < 0.05 + 30.0 / rows + 4.0 * error


def at_mixture(events: np.ndarray, contexts: np.ndarray, parts: int) -> tuple[departure.Untrained, np.ndarray]:
    """Models of all folds at a mixture of two, scored in closed form, and the scores of their flows."""
    model = untrained_flow(jr.key(0), events, contexts)
    table = whitened("fit_flow", model.scaling, model.context_scaling, events, contexts)
    order = np.arange(len(events)) % parts
    pairs = [
        (table.take(jnp.asarray(np.flatnonzero(order != fold))), table.take(jnp.asarray(np.flatnonzero(order == fold))))
        for fold in range(parts)
    ]
    held = HeldRows(stack([out for _, out in pairs]), jr.split(jr.key(1), parts))
    untrained = departure._mixture(ReferenceChoice(2, 0.1, (1.0, 0.1)), model, table, pairs, held.sample)
    return untrained, departure.scored_as_flows(untrained.models, held)


def test_folds_without_a_rare_value_of_a_context_have_models_of_the_same_shape():
    rng = np.random.default_rng(5)
    contexts = rng.normal(size=(100, 2))
    contexts[:, 1] = np.arange(100) == 50  # one row, which every fold but one trains on
    events = np.stack([contexts[:, 0], 5.0 * contexts[:, 1]], axis=1) + 0.3 * rng.normal(size=(100, 2))
    untrained, _ = at_mixture(events, contexts, 5)
    assert len(untrained.models.reach) == 6
    assert np.isfinite(untrained.scores).all()


def test_the_closed_form_of_a_mixture_that_the_solver_cannot_follow_is_not_the_score_of_its_flow():
    contexts = np.random.default_rng(6).normal(size=(100, 1))
    untrained, as_flows = at_mixture(2.0 * contexts, contexts, 2)
    assert as_flows.mean() < untrained.scores.mean() - 5.0


def test_one_observation_says_nothing_about_its_error():
    gain = mean_and_error(np.full(4, 0.5), np.full(4, 0.25), np.zeros(4, int))
    assert not departure.is_clear(gain)
