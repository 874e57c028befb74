"""A diagnosis passes sound densities, finds planted faults, and its figures are right where the truth is known."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import small_network
from references import CONTEXTS, MIXTURE, amortized, conditional_gaussian_flow, gaussian_flow, random_flow

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.diagnostics import log_prob_checks
from flowdensity.diagnostics.findings import SIGNIFICANT, Finding
from flowdensity.diagnostics.subject import subject

CONDITIONAL = fd.FlowDensity(conditional_gaussian_flow())
HELD = MIXTURE.sample(np.random.default_rng(77), 1000)


def bad(diagnosis):
    return {(finding.section.split(",")[0], finding.quantity.split(",")[0]) for finding in diagnosis.bad}


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
    density = mixture_fit.density.with_divergence(fd.SteinDivergence(biased))
    found = fd.diagnose(jr.key(1), density, HELD, progress=False)
    assert {
        ("log_prob against the exact divergence", "size of the bias"),
        ("Stein residuals of the learned divergence", "bias that they imply"),
        ("Normalisation", "size of the log integral by samples"),
        ("Normalisation", "size of the log integral by quadrature"),
    } <= bad(found)
    bias = next(finding for finding in found.findings if finding.quantity.startswith("size of the bias"))
    assert abs(bias.value - 0.3) < 0.03
    implied = next(finding for finding in found.findings if finding.quantity.startswith("bias that they imply"))
    assert abs(implied.value - 0.3) < 0.03
    assert "Fix: density = density.with_divergence(fd.ExactDivergence())" in str(found)


@pytest.mark.slow
def test_an_error_without_a_bias_is_found(mixture_fit, exact_mixture):
    own = mixture_fit.density.sample(jr.key(2), (2000,))

    def errors(size, constant):
        density = mixture_fit.density.with_divergence(Wavy(mixture_fit.density.divergence, size, constant))
        return density, np.asarray(density.log_prob(own) - exact_mixture.log_prob(own), np.float64)

    _, unit = errors(1.0, 0.0)
    size = 0.5 / unit.std()
    density, error = errors(size, float(size * unit.mean() / (0.5 * math.pi)))
    assert abs(error.mean()) < 0.03
    assert 0.48 < math.sqrt(np.mean(error**2)) < 0.52
    found = fd.diagnose(jr.key(3), density, progress=False)
    assert ("log_prob against the exact divergence", "root mean square over samples") in bad(found)
    assert ("log_prob against the exact divergence", "size of the bias") not in bad(found)


@pytest.mark.slow
def test_too_few_steps_are_found(mixture_fit):
    coarse = mixture_fit.density.with_solver(fd.FixedStep(2))
    found = fd.diagnose(jr.key(4), coarse, progress=False)
    assert "Solver" in sections(found)
    assert "density.with_solver(fd.FixedStep(steps=8))" in str(found)


@pytest.mark.slow
def test_a_head_without_tails_is_found(mixture_fit):
    divergence, _ = fd.fit_divergence(
        jr.key(9), mixture_fit.density.model, mixture_fit.data, objective=fd.LangevinStein(tails=0.0),
        batch_size=256, steps=3000, learning_rate=3e-3, progress=False,
    )  # fmt: skip
    found = fd.diagnose(jr.key(5), mixture_fit.density.with_divergence(divergence), HELD, progress=False)
    assert sections(found) == {"Tails"}


@pytest.mark.slow
def test_samples_of_another_distribution_are_found(mixture_fit):
    found = fd.diagnose(jr.key(6), mixture_fit.density, HELD + np.array([0.4, 0.0]), progress=False)
    assert ("Held-out rows against samples", "p-value of the nearest-neighbour test") in bad(found)
    assert sections(found) <= {"Held-out rows against samples", "Held-out log score"}


@pytest.mark.slow
def test_an_under_trained_flow_is_found(mixture_fit):
    density, _ = fd.fit_flow(
        jr.key(1),
        mixture_fit.data,
        network=small_network(2, 2),
        divergence=fd.ExactDivergence(),
        steps=30,
        progress=False,
    )
    found = fd.diagnose(jr.key(7), density, HELD, progress=False)
    assert "Held-out log score" in sections(found)
    assert not {"log_prob against the exact divergence", "Solver", "Normalisation"} & sections(found)


@pytest.mark.slow
def test_sound_fits_of_other_kinds_pass(conditional_fit, positive_fit, mixture_fit):
    rng = np.random.default_rng(8)
    keep = rng.permutation(len(conditional_fit.data))[:800]
    data, context = conditional_fit.data[keep], conditional_fit.context[keep]
    fast, _ = fd.distill(jr.key(10), mixture_fit.density, labels=8192, steps=3000, progress=False)
    for density, samples, contexts in (
        (conditional_fit.density, data, context),
        (conditional_fit.density.given(np.array([0.5])), None, None),
        (positive_fit.density, rng.gamma(3.0, 2.0, 800), None),
        (fast, HELD, None),
    ):
        found = fd.diagnose(jr.key(9), density, samples, context=contexts, progress=False)
        assert not found.bad, found


@pytest.mark.slow
def test_false_alarms_stay_within_the_stated_rate(mixture_fit):
    """One in a hundred at most: of five, two would have a probability of 0.001."""
    rng = np.random.default_rng(10)
    alarms = [
        bool(fd.diagnose(jr.key(seed), mixture_fit.density, MIXTURE.sample(rng, 1000), progress=False).bad)
        for seed in range(5)
    ]
    assert sum(alarms) <= 1


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
    looked_at = subject(jr.key(14), density, None, jnp.zeros((1, 0)))
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
