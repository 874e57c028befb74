"""A diagnosis passes sound densities, finds planted faults, and its figures are right where the truth is known."""

import json
import math
import re
from pathlib import Path

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
from flowdensity.checks import (
    CHECKS,
    Coverage,
    GradientError,
    IntegralByQuadrature,
    IntegralBySampling,
    LogProbError,
    LogScore,
    NearestNeighborTest,
    SolverError,
    SteinResiduals,
    Subject,
    Tails,
)
from flowdensity.data.tables import Sample
from flowdensity.data.whitened import whitened_events
from flowdensity.diagnostics.findings import SIGNIFICANT, Finding
from flowdensity.diagnostics.subject import first_rows, make_subject, values

CONDITIONAL = fd.FlowDensity(conditional_gaussian_flow())
HELD = MIXTURE.sample(np.random.default_rng(77), 1000)


def figures(looked_at: Subject, *checks, key=None) -> dict[str, Finding]:
    """The findings of some checks by id."""
    key = jr.key(0) if key is None else key
    return {finding.id: finding for check in checks for finding in check.run(key, looked_at)[0]}


def bad(found: dict[str, Finding]) -> set[str]:
    """The ids of the findings that are bad."""
    return {id for id, finding in found.items() if finding.verdict == "bad"}


def unconditional(seed: int, density, held_out=None) -> Subject:
    """A density without context under diagnosis: one check of it takes a tenth of what all of them take."""
    return make_subject(jr.key(seed), jr.key(seed + 1), density, held_out, jnp.zeros((1, 0)))


def held_out(model, rows) -> Sample:
    """Rows as the checks take them."""
    return Sample(whitened_events("test", "rows", model.scaling, rows), jnp.zeros((len(rows), 0)))


class Wavy(fd.divergences.AbstractDivergence):
    """Another divergence and a wave: no bias to speak of, but an error at every point."""

    inner: fd.divergences.AbstractDivergence
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
    rmse = sound["log_prob.rmse"]
    expected = math.sqrt(np.mean(error**2))
    assert abs(rmse.value - expected) < 4.0 * rmse.standard_error
    near, tails = sound.evidence["log_prob"], sound.evidence["tails"]
    assert near.log_probs.shape == near.errors.shape == (512,)
    assert tails.log_probs.shape == tails.exact.shape == (3, 256)
    assert isinstance(sound.evidence["stein"], fd.results.Residuals)


@pytest.mark.slow
def test_the_report_reads_as_text_and_as_a_dict(sound):
    text = str(sound)
    assert text.startswith(f"No fault found in {len(sound)} figures. (")
    tree = sound.as_dict()
    assert list(tree) == list(sound) == [finding.id for finding in sound.findings]
    for id, entry in tree.items():
        assert f"\n{entry['section']}\n" in text
        assert f"  {id} " in text
        assert entry["quantity"] in text
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
    assert Finding("", "", bound, 1.0, value=value, standard_error=error).verdict == verdict


@pytest.mark.slow
def test_a_bias_is_found(mixture_fit):
    head = mixture_fit.density.divergence.head
    # A constant rate over the angles from 0 to pi/2: 0.3 nats.
    biased = eqx.tree_at(lambda h: h.offset, head, head.offset.at[0].add(0.3 / (0.5 * math.pi)))
    looked_at = unconditional(1, mixture_fit.density.with_divergence(fd.SteinDivergence(biased)))
    checks = (LogProbError(), SteinResiduals(), IntegralBySampling(), IntegralByQuadrature())
    found = figures(looked_at, *checks, key=jr.key(3))
    assert bad(found) == {"log_prob.bias", "stein.bias", "integral.sampling", "integral.quadrature"}
    # The calibrated head has a bias of its own: its standard error is beside it.
    own = mixture_fit.report.residuals.bias[1]
    for id in ("log_prob.bias", "stein.bias"):
        assert abs(found[id].value - 0.3) < 4.5 * math.hypot(found[id].standard_error, own)
    fix = "Fix: density = density.with_divergence(fd.ExactDivergence())"
    assert all(found[id].advice.endswith(fix) for id in bad(found))


@pytest.mark.slow
def test_an_error_without_a_bias_is_found(mixture_fit):
    """A wave whose size and constant make an error of 0.5 nats at samples of the model, and no bias."""

    def with_wave(size, constant):
        return unconditional(3, mixture_fit.density.with_divergence(Wavy(fd.ExactDivergence(), size, constant)))

    unit = with_wave(1.0, 0.0).errors[0]
    size = 0.5 / unit.std()
    looked_at = with_wave(size, float(size * unit.mean() / (0.5 * math.pi)))
    rmse, bias = LogProbError().run(jr.key(4), looked_at)[0]
    # The wave adds to the rate and not to the states: its error is that of the unit wave times its size, but for rounding.
    assert rmse.value == pytest.approx(0.5, abs=1e-3)
    assert bias.value < 1e-3
    assert [rmse.verdict, bias.verdict] == ["bad", "good"]


@pytest.mark.slow
def test_too_few_steps_are_found(mixture_fit):
    found = []
    for count in (2, mixture_fit.density.solver.steps):
        looked_at = unconditional(4, mixture_fit.density.with_solver(fd.FixedStep(count)))
        found.append(figures(looked_at, SolverError())["solver.change"])
    assert [finding.verdict for finding in found] == ["bad", "good"]
    assert "density.with_solver(fd.FixedStep(steps=8))" in found[0].advice


class WithoutTails(fd.divergences.AbstractDivergence):
    """Another divergence, and a rate that is wrong beyond a radius only."""

    inner: fd.divergences.AbstractDivergence
    radius: jax.Array

    def __call__(self, model, time, state, context):
        velocity, rate = self.inner(model, time, state, context)
        return velocity, rate - jnp.maximum(jnp.linalg.norm(state) - self.radius, 0.0)


def test_tails_that_are_wrong_are_found():
    """The samples do not reach them: no other check of the log density sees it."""
    model = gaussian_flow()
    whole = unconditional(5, fd.FlowDensity(model, divergence=WithoutTails(fd.ExactDivergence(), jnp.asarray(jnp.inf))))
    radius = jnp.max(jnp.linalg.norm(whole.samples.states, axis=1))
    without = unconditional(5, fd.FlowDensity(model, divergence=WithoutTails(fd.ExactDivergence(), radius)))
    far = {"tails.4", "tails.10"}
    assert far <= bad(figures(without, Tails())) <= far | {"tails.2", "tails.rising"}
    assert not bad(figures(whole, Tails()))
    assert not bad(figures(without, LogProbError()))


@pytest.mark.slow
def test_samples_of_another_distribution_are_found(mixture_fit):
    for shift, expected in ((0.0, "good"), (0.4, "bad")):
        rows = held_out(mixture_fit.density.model, HELD + np.array([shift, 0.0]))
        found = figures(unconditional(6, mixture_fit.density, rows), NearestNeighborTest(), key=jr.key(7))
        assert found["samples.neighbors"].verdict == expected


@pytest.mark.slow
def test_an_under_trained_flow_is_found(mixture_fit):
    """A flow before its training is the fitted Gaussian: there is nothing wrong but that it has not learned the data."""
    model = untrained_flow(jr.key(0), mixture_fit.data)
    looked_at = unconditional(7, fd.FlowDensity(model), held_out(model, HELD))
    checks = (LogScore(), LogProbError(), SolverError(), IntegralBySampling(), IntegralByQuadrature())
    found = figures(looked_at, *checks, key=jr.key(8))
    verdicts = {id: finding.verdict for id, finding in found.items() if finding.verdict != "good"}
    assert verdicts == {"score.mixture": "bad", "score.kernel": "bad"}
    assert found["score.gaussian"].verdict == found["integral.sampling"].verdict == "good"


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
    network = fd.networks.LogDensityNetwork(jr.key(1), 2, 0, reach=jnp.asarray(5.0), scale=jnp.asarray(1.0), width=16)
    for density, samples in ((CONDITIONAL.given(CONTEXTS[1]), None), (fd.AmortizedDensity(network, flow), None)):
        found = fd.diagnose(jr.key(9), density, samples, progress=False)
        assert not found.bad, found


@pytest.mark.slow
def test_false_alarms_stay_within_the_stated_rate():
    """Of held-out rows that are samples of the model: p-values are uniform, intervals cover, and no verdict is bad."""
    trials, rows = 200, 100
    model = untrained_flow(jr.key(0), HELD)
    density = fd.FlowDensity(model, solver=fd.FixedStep(1))
    looked_at = unconditional(10, density)
    found, off = [], []
    for key in jr.split(jr.key(11), trials):
        held_key, fit_key, cover_key = jr.split(key, 3)
        drawn = unconditional(10, density, looked_at.draw(held_key, rows))
        found += NearestNeighborTest(permutations=99).run(fit_key, drawn)[0]
        off += Coverage().run(cover_key, drawn)[0]
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
    assert {"log_prob.rmse", "log_prob.gradient"} <= {finding.id for finding in found.bad}
    assert "Fix: density = density.flow.with_divergence(fd.ExactDivergence())" in str(found)


def test_the_exact_density_of_a_closed_form_is_without_fault():
    """Nothing was learned: what is left is the solver's error, and the log integral is zero."""
    found = fd.diagnose(jr.key(12), fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(16)), progress=False)
    assert not found.bad
    assert found["log_prob.rmse"].value == 0.0
    assert found["integral.quadrature"].value < 0.01
    assert found["stein.bias"].verdict == "not measured"
    assert "was not learned" in found["stein.bias"].reason


@pytest.mark.slow
def test_with_two_estimates_the_mean_squared_error_has_no_bias(monkeypatch):
    """In many dimensions nothing is exact: two estimates of one probe each are far noisier than the error."""
    model = random_flow(jr.key(13), 6)
    density = fd.FlowDensity(model, divergence=Wavy(fd.ExactDivergence(), 0.4, 0.1))
    monkeypatch.setattr("flowdensity.diagnostics.subject.MAX_EXACT_DIM", 4)
    monkeypatch.setattr("flowdensity.diagnostics.subject.NUM_PROBES", 1)
    looked_at = unconditional(14, density)
    assert len(looked_at.exact_log_probs) == 2
    drawn = looked_at.samples
    exact = np.asarray(density.with_divergence(fd.ExactDivergence()).log_prob(drawn.states), np.float64)
    truth = values(looked_at.log_prob, drawn) - exact
    found = figures(looked_at, LogProbError(), GradientError(), IntegralBySampling())
    rmse, bias, gradient = (found[f"log_prob.{name}"] for name in ("rmse", "bias", "gradient"))
    assert math.sqrt(np.mean(looked_at.errors[0] ** 2)) > 1.5 * math.sqrt(np.mean(truth**2))
    assert abs(rmse.value - math.sqrt(np.mean(truth**2))) < 4.0 * rmse.standard_error
    assert abs(bias.value - abs(truth.mean())) < 4.0 * bias.standard_error
    assert found["integral.sampling"].verdict == "not measured"
    slopes = [
        np.asarray(jax.vmap(jax.grad(d.log_prob))(first_rows(drawn, 128).states), np.float64)
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
        (lambda d: (d.model, HELD, None), TypeError, "expected `density` of type .* or AmortizedDensity; got GaussianFlow"),
        (lambda d: (d, HELD[:, :1], None), ValueError, r"expected `samples` with shape \(n, 2\)"),
        (lambda d: (d, HELD[:1], None), ValueError, "n >= 2"),
        (lambda d: (d, np.where(HELD > 2.0, np.nan, HELD), None), ValueError, "expected `samples` with finite values"),
        (lambda d: (d, HELD, HELD), ValueError, "expected `context`"),
        (lambda d: (CONDITIONAL, HELD, None), ValueError, "expected `context`, since this density is conditional"),
        (lambda d: (CONDITIONAL.given(CONTEXTS), HELD, None), ValueError, r"got one with contexts of batch shape \(4,\)"),
        (lambda d: (CONDITIONAL, HELD, CONTEXTS), ValueError, r"expected `context` with shape \(1000, ...\)"),
    ],
)  # fmt: skip
def test_bad_input(mixture_fit, make, error, message):
    density, samples, context = make(mixture_fit.density)
    with pytest.raises(error, match=f"^diagnose .*{message}"):
        fd.diagnose(jr.key(0), density, samples, context=context, progress=False)


SOUND_GAUSSIAN = fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(16))
ROWS = np.asarray(SOUND_GAUSSIAN.sample(jr.key(20), (150,)))


def own_check():
    """The example of CONTRIBUTING.md, which runs as it is, with the diagnosis that it makes."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"## How to add a check\n.*?```python\n(.*?)```", text, re.DOTALL)
    names = {"density": SOUND_GAUSSIAN, "held_out": ROWS}
    exec(example, names)
    return names["MeanShift"], names["diagnosis"]


def test_the_example_of_a_check_runs_beside_the_built_in_checks():
    own, diagnosis = own_check()
    assert list(diagnosis)[-1] == "samples.means"
    assert diagnosis["samples.means"].verdict == "good"
    assert diagnosis["samples.means"].section == diagnosis["samples.coverage"].section
    # Those of the other checks are as without it.
    alone = fd.diagnose(jr.key(0), SOUND_GAUSSIAN, ROWS, progress=False)
    assert diagnosis.findings[:-1] == alone.findings
    assert len(diagnosis) == len(alone) + 1
    shifted = fd.diagnose(jr.key(0), SOUND_GAUSSIAN, ROWS + np.array([1.0, 0.0]), checks=[own()], progress=False)
    assert shifted["samples.means"].value == shifted.evidence["means"].max()
    assert shifted.conclusion == "1 of 1 figure is bad: samples.means."
    assert "samples.means: The model has not learned the mean" in shifted.summary()
    fewer = fd.diagnose(jr.key(0), SOUND_GAUSSIAN, ROWS[:99], checks=[own(max_shift=1.0)], progress=False)
    assert fewer["samples.means"].threshold == 1.0
    assert fewer["samples.means"].reason.startswith("at least 100 held-out rows are needed; there are 99. Fix: ")


@pytest.mark.parametrize(("samples", "got"), [(None, "needed. Fix"), (ROWS[:60], "needed; there are 60. Fix")])
def test_a_check_that_lacks_held_out_rows_is_not_run_and_says_why(samples, got):
    checks = (NearestNeighborTest(), Coverage(), LogScore())
    found = fd.diagnose(jr.key(0), SOUND_GAUSSIAN, samples, checks=checks, progress=False)
    assert len(found) == 5
    assert {finding.verdict for finding in found.findings} == {"not measured"}
    assert {finding.reason for finding in found.findings} == {
        f"at least 100 held-out rows are {got}: diagnosis = fd.diagnose(key, density, samples)"
    }
    assert not found.bad
    assert not found.evidence
    assert found.conclusion == "Nothing was measured."
    assert found.summary().count("at least 100 held-out rows") == 1


def test_quadrature_is_left_out_above_two_dimensions():
    looked_at = unconditional(21, fd.FlowDensity(random_flow(jr.key(13), 3)))
    assert figures(looked_at, IntegralByQuadrature())["integral.quadrature"].verdict == "not measured"


def test_ids_are_unique_and_stable():
    """Scripts, plots and benchmarks find figures by these."""
    looked_at = unconditional(22, SOUND_GAUSSIAN)
    assert [figure.id for check in CHECKS for figure in check.figures(looked_at)] == [
        *("log_prob.rmse", "log_prob.bias", "log_prob.gradient", "stein.bias", "stein.coordinate", "solver.change"),
        *("integral.sampling", "integral.quadrature", "tails.2", "tails.4", "tails.10", "tails.rising"),
        *("samples.neighbors", "samples.coverage", "score.gaussian", "score.mixture", "score.kernel"),
    ]


def test_an_unknown_id_is_said_to_be_unknown():
    found = fd.results.Diagnosis((Finding("a.b", "", "at most", 1.0, value=0.5),), {}, 1.0)
    assert found["a.b"] is found.findings[0]
    assert "a.b" in found
    assert "a.c" not in found
    with pytest.raises(KeyError, match=r"'a\.c'; the findings are a\.b"):
        found["a.c"]


def test_the_bar_counts_checks(capsys):
    fd.diagnose(jr.key(0), SOUND_GAUSSIAN, checks=(LogProbError(), Tails()))
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checks", "error", "message"),
    [
        (LogProbError(), TypeError, r"got one check. Fix: checks = \(checks,\)"),
        ((LogProbError, 3), TypeError, "got a sequence with the class LogProbError. Fix: checks = fd.checks.CHECKS"),
        ([LogProbError], TypeError, r"the class LogProbError. Fix: checks = \[check\(\) if isinstance"),
        ((Tails(), 3), TypeError, r"got a sequence with 3. Fix: checks = \[check for check in checks if isinstance"),
        (3, TypeError, "got 3. Fix: checks = fd.checks.CHECKS"),
        ((*CHECKS, Tails(factors=(3.0,))), ValueError, "distinct names; got tails more than once"),
    ],
)
def test_bad_checks(checks, error, message):
    with pytest.raises(error, match=f"^diagnose expected `checks` .*{message}"):
        fd.diagnose(jr.key(0), SOUND_GAUSSIAN, checks=checks, progress=False)


def test_fixes_keep_the_checks_of_the_user():
    own, _ = own_check()
    for checks in ([own(), 3], [own, Tails()], [Tails(), Tails(factors=(3.0,)), own()]):
        with pytest.raises((TypeError, ValueError)) as raised:
            fd.diagnose(jr.key(0), SOUND_GAUSSIAN, checks=checks, progress=False)
        names = {"checks": checks, "fd": fd}
        exec(str(raised.value).rpartition("Fix: ")[2], names)
        assert "means" in [check.name for check in names["checks"]]
    # When two checks have the same name, the later one is kept: it is the one that the user has added.
    assert names["checks"][0].factors == (3.0,)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        ({}, "got dict"),
        ((1.0, None), "got figures as 1.0"),
        (({}, None), r"got figures for \[\]"),
        (({"samples.means": 1.0}, None), "got 1.0 for 'samples.means'"),
        (({"samples.means": fd.checks.Measured(np.ones(2))}, None), "for 'samples.means'"),
    ],
)
def test_a_check_that_measures_something_else_is_named(monkeypatch, result, got):
    own, _ = own_check()
    monkeypatch.setattr(own, "measure", lambda self, key, subject: result)
    with pytest.raises(TypeError, match=f"`measure` of the check 'means' .*{got}"):
        fd.diagnose(jr.key(0), SOUND_GAUSSIAN, ROWS, checks=[own()], progress=False)


def test_a_diagnosis_without_figures_finds_nothing():
    diagnosis = fd.diagnose(jr.key(0), fd.FlowDensity(gaussian_flow()), checks=(), progress=False)
    assert diagnosis.conclusion == "Nothing was measured."
