"""A diagnosis passes sound densities, finds planted faults, and its figures are right where the truth is known."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import (
    CONTEXTS,
    MIXTURE,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
    random_flow,
    untrained_flow,
)
from scipy.stats import binom

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.diagnostics import data_checks, log_prob_checks
from flowdensity.diagnostics.findings import SIGNIFICANT, Finding
from flowdensity.diagnostics.subject import Subject, subject
from flowdensity.training.prepare import whitened_events

CONDITIONAL = fd.FlowDensity(conditional_gaussian_flow())
HELD = MIXTURE.sample(np.random.default_rng(77), 1000)


COUNT = 512
"""Samples at which log densities are compared, as in `diagnose`."""


def bad(findings):
    """Section and quantity of each finding that is bad."""
    return {
        (finding.section.split(",")[0], finding.quantity.split(",")[0])
        for finding in findings
        if finding.verdict == "bad"
    }


def unconditional(seed: int, density) -> Subject:
    """A density without context under diagnosis: one check of it takes a tenth of what all of them take."""
    return subject(jr.key(seed), density, None, jnp.zeros((1, 0)))


def held_out(model, rows) -> Sample:
    """Rows as the checks take them."""
    return Sample(whitened_events("test", "rows", model, rows), jnp.zeros((len(rows), 0)))


def sections(diagnosis):
    return {finding.section.split(",")[0] for finding in diagnosis.bad}


class Wavy(fd.AbstractDivergence):
    """Another divergence and a wave: no bias to speak of, but an error at every point."""

    inner: fd.AbstractDivergence
    size: jax.Array
    constant: jax.Array

    def __init__(self, inner, size, constant=0.0):
        self.inner, self.size, self.constant = inner, jnp.asarray(size), jnp.asarray(constant)

    def __call__(self, model, time, state, context):
        velocity, rate = self.inner(model, time, state, context)
        # Along one trajectory the first coordinate moves; the wave is long enough not to average out.
        return velocity, rate + self.size * jnp.sin(1.5 * state[0] + 0.3) + self.constant


@pytest.fixture(scope="module")
def sound(mixture_fit):
    return fd.diagnose(jr.key(0), mixture_fit.density, HELD, progress=False)


@pytest.mark.slow
def test_a_sound_density_passes(sound, mixture_fit, exact_mixture):
    assert not sound.bad
    assert all(finding.verdict == "good" for finding in sound.findings)
    # Its first figure against the same points, compared by hand.
    error = np.asarray(mixture_fit.density.log_prob(HELD) - exact_mixture.log_prob(HELD), np.float64)
    rmse = sound.findings[0]
    expected = math.sqrt(np.mean(error**2))
    assert abs(rmse.value - expected) < 4.0 * rmse.standard_error
    assert len(sound.evidence.errors) == 512
    assert sound.evidence.tails.shape == (3, 2, 256)


@pytest.mark.slow
def test_the_report_reads_as_text_and_as_a_dict(sound):
    text = str(sound)
    assert text.startswith(f"{len(sound.findings)} findings, none bad")
    tree = sound.as_dict()
    assert sum(len(section) for section in tree.values()) == len(sound.findings)
    for section, entries in tree.items():
        assert f"\n{section}\n" in text
        for quantity, entry in entries.items():
            assert quantity in text
            assert entry["verdict"] == "good"
    json.dumps(tree)


@pytest.mark.parametrize(
    ("value", "error", "bound", "verdict"),
    [
        (0.9, 0.1, "at most", "good"),
        (1.1, 0.1, "at most", "unclear"),
        (1.0 + 1.01 * SIGNIFICANT * 0.1, 0.1, "at most", "bad"),
        (1.1, 0.0, "at least", "good"),
        (0.9, 0.1, "at least", "unclear"),
        (0.9, 0.0, "at least", "bad"),
        (math.nan, 0.1, "at most", "bad"),
        (0.0, math.nan, "at most", "bad"),
        (None, 0.0, "at most", "not measured"),
    ],
)
def test_verdicts(value, error, bound, verdict):
    assert Finding("", "", value, error, bound, 1.0, "").verdict == verdict


@pytest.mark.slow
def test_a_bias_is_found(mixture_fit):
    head = mixture_fit.density.divergence.head
    # A constant rate over the quarter circle: 0.3 nats.
    biased = eqx.tree_at(lambda h: h.offset, head, head.offset.at[0].add(0.3 / (0.5 * math.pi)))
    looked_at = unconditional(1, mixture_fit.density.with_divergence(fd.SteinDivergence(biased)))
    drawn = looked_at.draw(jr.key(2), COUNT)
    _, error = log_prob_checks.errors(looked_at, drawn)
    found = [
        *log_prob_checks.agreement(looked_at, error, "samples"),
        *log_prob_checks.residuals(jr.key(3), looked_at)[0],
        *log_prob_checks.normaliser(looked_at, drawn, error),
    ]
    assert bad(found) == {
        ("log_prob against the exact divergence", "size of the bias"),
        ("Stein residuals of the learned divergence", "bias that they imply"),
        ("Normalisation", "size of the log integral by samples"),
        ("Normalisation", "size of the log integral by quadrature"),
    }
    # The calibrated head has a bias of its own: its standard error is beside it.
    own = mixture_fit.report.residuals.bias[1]
    for quantity in ("size of the bias", "bias that they imply"):
        bias = next(finding for finding in found if finding.quantity.startswith(quantity))
        assert abs(bias.value - 0.3) < 4.5 * math.hypot(bias.standard_error, own)
    fix = "Fix: density = density.with_divergence(fd.ExactDivergence())"
    assert all(finding.words.endswith(fix) for finding in found if finding.verdict == "bad")


@pytest.mark.slow
def test_an_error_without_a_bias_is_found(mixture_fit):
    """A wave whose size and constant make an error of 0.5 nats at samples of the model, and no bias."""

    def errors(size, constant):
        density = mixture_fit.density.with_divergence(Wavy(fd.ExactDivergence(), size, constant))
        looked_at = unconditional(3, density)
        return looked_at, log_prob_checks.errors(looked_at, looked_at.draw(jr.key(4), COUNT))[1]

    unit = errors(1.0, 0.0)[1][0]
    size = 0.5 / unit.std()
    looked_at, error = errors(size, float(size * unit.mean() / (0.5 * math.pi)))
    rmse, bias = log_prob_checks.agreement(looked_at, error, "samples")
    # The wave adds to the rate and not to the states: its error is that of the unit wave times its size, but for rounding.
    assert rmse.value == pytest.approx(0.5, abs=1e-3)
    assert bias.value < 1e-3
    assert [rmse.verdict, bias.verdict] == ["bad", "good"]


@pytest.mark.slow
def test_too_few_steps_are_found(mixture_fit):
    found = []
    for count in (2, mixture_fit.density.solver.steps):
        looked_at = unconditional(4, mixture_fit.density.with_solver(fd.FixedStep(count)))
        drawn = looked_at.draw(jr.key(5), COUNT)
        found += log_prob_checks.steps(looked_at, drawn, log_prob_checks.errors(looked_at, drawn)[0])
    assert [finding.verdict for finding in found] == ["bad", "good"]
    assert "density.with_solver(fd.FixedStep(steps=8))" in found[0].words


class WithoutTails(fd.AbstractDivergence):
    """Another divergence, and a rate that is wrong beyond a radius only."""

    inner: fd.AbstractDivergence
    radius: jax.Array

    def __call__(self, model, time, state, context):
        velocity, rate = self.inner(model, time, state, context)
        return velocity, rate - jnp.maximum(jnp.linalg.norm(state) - self.radius, 0.0)


def test_tails_that_are_wrong_are_found():
    """The samples do not reach them: no other check of the log density sees it."""
    model = gaussian_flow()
    whole = unconditional(5, fd.FlowDensity(model, divergence=WithoutTails(fd.ExactDivergence(), jnp.asarray(jnp.inf))))
    drawn = whole.draw(jr.key(6), COUNT)
    radius = jnp.max(jnp.linalg.norm(drawn.states, axis=1))
    without = unconditional(5, fd.FlowDensity(model, divergence=WithoutTails(fd.ExactDivergence(), radius)))
    quantities = {("Tails", f"99 % of the excess at {factor}x") for factor in (4, 10)}
    assert quantities <= bad(log_prob_checks.tails(without, drawn)[0]) <= quantities | {
        ("Tails", "99 % of the excess at 2x"), ("Tails", "share of rays beyond all samples on which it rises")
    }  # fmt: skip
    assert not bad(log_prob_checks.tails(whole, drawn)[0])
    assert not bad(log_prob_checks.agreement(without, log_prob_checks.errors(without, drawn)[1], "samples"))


@pytest.mark.slow
def test_samples_of_another_distribution_are_found(mixture_fit):
    looked_at = unconditional(6, mixture_fit.density)
    for shift, expected in ((0.0, False), (0.4, True)):
        rows = held_out(mixture_fit.density.model, HELD + np.array([shift, 0.0]))
        found = data_checks.goodness_of_fit(jr.key(7), looked_at, rows.take(jnp.arange(COUNT)))
        assert [finding.verdict == "bad" for finding in found] == [expected]


@pytest.mark.slow
def test_an_under_trained_flow_is_found(mixture_fit):
    """A flow before its training is the fitted Gaussian: there is nothing wrong but that it has not learned the data."""
    model = untrained_flow(jr.key(0), mixture_fit.data)
    looked_at = unconditional(7, fd.FlowDensity(model))
    found = data_checks.log_score(jr.key(8), looked_at, held_out(model, HELD))
    assert [finding.verdict for finding in found] == ["good", "bad", "bad"]
    drawn = looked_at.draw(jr.key(9), COUNT)
    own, error = log_prob_checks.errors(looked_at, drawn)
    for finding in (
        *log_prob_checks.agreement(looked_at, error, "samples"),
        *log_prob_checks.steps(looked_at, drawn, own),
        *log_prob_checks.normaliser(looked_at, drawn, error),
    ):
        assert finding.verdict == "good"


@pytest.mark.slow
def test_sound_fits_of_other_kinds_pass(conditional_fit, positive_fit):
    rng = np.random.default_rng(8)
    keep = rng.permutation(len(conditional_fit.data))[:800]
    data, context = conditional_fit.data[keep], conditional_fit.context[keep]
    for density, samples, contexts in (
        (conditional_fit.density, data, context),
        (positive_fit.density, rng.gamma(3.0, 2.0, 800), None),
    ):
        found = fd.diagnose(jr.key(9), density, samples, context=contexts, progress=False)
        assert not found.bad, found


@pytest.mark.slow
def test_a_density_with_its_context_and_an_amortized_one_pass():
    """Both are exact: the network of the second adds nothing to a flow that is the fitted Gaussian."""
    flow = fd.FlowDensity(untrained_flow(jr.key(0), HELD))
    network = fd.EnergyNetwork(jr.key(1), 2, 0, reach=jnp.asarray(5.0), scale=jnp.asarray(1.0), width=16)
    for density, samples in ((CONDITIONAL.given(CONTEXTS[1]), None), (fd.AmortizedDensity(network, flow), None)):
        found = fd.diagnose(jr.key(9), density, samples, progress=False)
        assert not found.bad, found


@pytest.mark.slow
def test_false_alarms_stay_within_the_stated_rate(monkeypatch):
    """Of held-out rows that are samples of the model: p-values are uniform, intervals cover, and no verdict is bad."""
    monkeypatch.setattr(data_checks, "PERMUTATIONS", 99)
    trials, rows = 200, 100
    model = untrained_flow(jr.key(0), HELD)
    looked_at = unconditional(10, fd.FlowDensity(model, solver=fd.FixedStep(1)))
    found, off = [], []
    for key in jr.split(jr.key(11), trials):
        held_key, fit_key, cover_key = jr.split(key, 3)
        held = looked_at.draw(held_key, rows)
        found += data_checks.goodness_of_fit(fit_key, looked_at, held)
        off += data_checks.coverage(cover_key, looked_at, held)
    p = np.array([finding.value for finding in found])
    for level in (0.05, 0.2, 0.5):
        # Not more often than stated and, since equal scores are few, next to as often.
        low, high = binom.ppf([1e-4, 1.0 - 1e-4], trials, level)
        assert 0.8 * low <= np.sum(p <= level) <= high
    assert sum(finding.verdict == "bad" for finding in off) <= binom.isf(1e-4, trials, 0.01)
    # The larger of two deviations from 90 %: beyond 1.96 standard errors in 10 % of the tables or, since a count is a
    # whole number, in less.
    error = math.sqrt(0.9 * 0.1 / rows)
    beyond = sum(finding.value > 2.6 * error for finding in off)
    assert beyond <= binom.isf(1e-4, trials, 0.03)
    assert np.mean([finding.value > 0.0 for finding in off]) > 0.9


@pytest.mark.slow
def test_an_amortized_density_that_is_off_is_found():
    found = fd.diagnose(jr.key(11), amortized(fd.FlowDensity(gaussian_flow())), progress=False)
    assert "log_prob against the exact divergence" in sections(found)
    assert "Fix: density = density.flow.with_divergence(fd.ExactDivergence())" in str(found)


def test_the_exact_density_of_a_closed_form_is_without_fault():
    """Nothing was learned: what is left is the solver's error, and the log integral is zero."""
    found = fd.diagnose(jr.key(12), fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(16)), progress=False)
    assert not found.bad
    figures = {(f.section, f.quantity): f for f in found.findings}
    assert figures["log_prob against the exact divergence", "root mean square over samples, nats"].value == 0.0
    assert figures["Normalisation", "size of the log integral by quadrature, nats"].value < 0.01
    assert figures["Stein residuals of the learned divergence", "bias that they imply, nats"].verdict == "not measured"


@pytest.mark.slow
def test_with_two_rivals_the_mean_squared_error_has_no_bias(monkeypatch):
    """In many dimensions nothing is exact: two estimates of one probe each are far noisier than the error."""
    model = random_flow(jr.key(13), 6)
    density = fd.FlowDensity(model, divergence=Wavy(fd.ExactDivergence(), 0.4, 0.1))
    monkeypatch.setattr("flowdensity.diagnostics.subject.LARGEST", 4)
    monkeypatch.setattr("flowdensity.diagnostics.subject.PROBES", 1)
    looked_at = unconditional(14, density)
    assert len(looked_at.rivals) == 2
    drawn = looked_at.draw(jr.key(15), 512)
    own, error = log_prob_checks.errors(looked_at, drawn)
    exact = np.asarray(density.with_divergence(fd.ExactDivergence()).log_prob(drawn.states), np.float64)
    truth = own - exact
    rmse, bias = log_prob_checks.agreement(looked_at, error, "samples")
    assert math.sqrt(np.mean(error[0] ** 2)) > 1.5 * math.sqrt(np.mean(truth**2))
    assert abs(rmse.value - math.sqrt(np.mean(truth**2))) < 4.0 * rmse.standard_error
    assert abs(bias.value - abs(truth.mean())) < 4.0 * bias.standard_error
    (gradient,) = log_prob_checks.gradients(looked_at, Sample(drawn.states[:128], drawn.contexts[:128]))
    slopes = [
        np.asarray(jax.vmap(jax.grad(d.log_prob))(drawn.states[:128]), np.float64)
        for d in (density, density.with_divergence(fd.ExactDivergence()))
    ]
    share = math.sqrt(np.mean(np.square(slopes[0] - slopes[1])) / np.mean(np.square(slopes[1])))
    assert abs(gradient.value - share) < 4.0 * gradient.standard_error


def test_named_samples_are_arranged(mixture_fit):
    with pytest.raises(
        ValueError, match="diagnose expected `samples` as an array, since the model was learned without names"
    ):
        fd.diagnose(jr.key(0), mixture_fit.density, {"a": HELD[:, 0], "b": HELD[:, 1]}, progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d: (d.model, HELD, None), TypeError, "expected `density` of type FlowDensity or AmortizedDensity; got Flow"),
        (lambda d: (d, HELD[:, :1], None), ValueError, r"expected `samples` with shape \(n, 2\)"),
        (lambda d: (d, HELD[:1], None), ValueError, "n >= 2"),
        (lambda d: (d, np.where(HELD > 2.0, np.nan, HELD), None), ValueError, "expected `samples` with finite values"),
        (lambda d: (d, HELD, HELD), ValueError, "expected `context`"),
        (lambda d: (CONDITIONAL, HELD, None), ValueError, "expected `context`, since this density is conditional"),
        (lambda d: (CONDITIONAL.given(CONTEXTS), HELD, None), ValueError, r"has been given some, of batch shape \(4,\)"),
        (lambda d: (CONDITIONAL, HELD, CONTEXTS), ValueError, r"expected `context` with shape \(1000, ...\)"),
    ],
)  # fmt: skip
def test_bad_input(mixture_fit, make, error, message):
    density, samples, context = make(mixture_fit.density)
    with pytest.raises(error, match=f"^diagnose .*{message}"):
        fd.diagnose(jr.key(0), density, samples, context=context, progress=False)
