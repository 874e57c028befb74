"""What is in the pictures is what they say: read back from matplotlib, against closed forms and the arrays behind them."""

import subprocess
import sys
from dataclasses import replace

import arviz as az
import jax.random as jr
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    MIXTURE,
    SLOPE,
    ExactGaussianFlow,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
    named_flow,
)
from scipy.stats import norm

import flowdensity as fd
from flowdensity.diagnostics.checks.log_prob import LogProbErrors
from flowdensity.diagnostics.checks.tails import TailErrors
from flowdensity.diagnostics.findings import Finding
from flowdensity.diagnostics.plots import (
    DATA_COLOR,
    MODEL_COLOR,
    POSTERIOR_COLOR,
    plot_density,
    plot_errors,
    plot_prior_posterior,
    plot_residuals,
    plot_training,
)
from flowdensity.diagnostics.rank_plots import plot_ranks
from flowdensity.diagnostics.uniform import band, uniform_distribution
from flowdensity.training.loop import History

GAUSSIAN = fd.FlowDensity(gaussian_flow())
NAMED_DENSITY = fd.FlowDensity(named_flow())
CONDITIONAL = fd.FlowDensity(conditional_gaussian_flow())
KEY = jr.key(0)
ROWS = np.asarray(GAUSSIAN.sample(jr.key(1), (3000,)), np.float64)
RNG = np.random.default_rng(2)
RESIDUALS = fd.results.Residuals(
    times=np.array([0.0, 0.5, 1.0, 1.5]),
    functions=("1", "g", "y[0]"),
    mean=np.array([[0.1, 0.9, -0.2], [0.2, 0.1, 0.0], [-0.3, 0.4, 0.3]]),
    standard_error=np.array([[0.1, 0.3, 0.1], [0.2, 0.1, 0.2], [0.1, 0.1, 0.1]]),
)
REPORT = fd.results.FitReport(
    {
        "flow": History((0, 10, 20, 30), (3.0, 2.0, 1.5, 1.2), (3.0, 2.1, 1.7, 1.9), best_step=20),
        "divergence": History((0, 5, 10), (0.0, -1.0, -2.0), (0.0, -0.9, -1.8), best_step=10),
    },
    {},
    RESIDUALS,
)
TAILS_EXACT = RNG.normal(size=(3, 40))
EXCESS = RNG.normal(size=(3, 40))
NEAR = LogProbErrors(RNG.normal(size=50), 0.3 * RNG.normal(size=50))
BEYOND = TailErrors(np.array([2.0, 4.0, 10.0]), TAILS_EXACT + EXCESS, TAILS_EXACT)
DIAGNOSIS = fd.results.Diagnosis(
    (
        Finding("log_prob.rmse", "root mean square over samples, nats", "at most", 0.4, value=0.3, standard_error=0.01),
        Finding("tails.2", "99th percentile of the excess at 2x, nats", "at most", 1.5, value=0.1, standard_error=0.01),
    ),
    {"log_prob": NEAR, "stein": RESIDUALS, "tails": BEYOND},
    1.0,
)


@pytest.fixture(autouse=True)
def _no_window():
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    settings = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == settings
    plt.close("all")
    plt.switch_backend(before)


def posterior(**variables):
    return az.from_dict({"posterior": variables}) if hasattr(az, "convert_to_datatree") else az.from_dict(variables)


def lines(axis, color, style=None):
    """Points of the lines of a color, each of shape `(points, 2)`; those of legends have none."""
    found = [line for line in axis.lines if line.get_color() == color and style in (None, line.get_marker())]
    return [line.get_xydata() for line in found if len(line.get_xydata())]


def labels(axes, of="x"):
    return [getattr(axis, f"get_{of}label")() for axis in axes]


def test_a_pair_plot_has_a_panel_for_each_coordinate_and_pair():
    axes = plot_density(KEY, GAUSSIAN, ROWS)
    assert axes.shape == (2, 2)
    assert [bool(axis.axison) for axis in axes.flat] == [True, False, True, True]
    assert labels(axes[1]) == ["x[0]", "x[1]"]
    assert labels(axes[:, 0], "y") == ["", "x[1]"]
    (points,) = lines(axes[1, 0], DATA_COLOR)
    assert len(points) == 2000
    assert {tuple(point) for point in points} <= {tuple(row) for row in ROWS}
    assert axes[0, 0].get_xlim() == axes[1, 0].get_xlim()
    assert axes[1, 1].get_xlim() == axes[1, 0].get_ylim()
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == [
        "data",
        "50 % of the model",
        "90 % of the model",
    ]
    axes[0, 0].figure.canvas.draw()


def test_the_lines_of_a_pair_plot_are_the_closed_form():
    axes = plot_density(KEY, GAUSSIAN, ROWS)
    for i in range(2):
        ((x, height),) = (line.T for line in lines(axes[i, i], MODEL_COLOR))
        exact = norm(GAUSSIAN_MEAN[i], np.sqrt(GAUSSIAN_COVARIANCE[i, i])).pdf(x)
        # A kernel of width h (in standard deviations) lowers the peak by h^2 / 2; the variance is f / (2 n h sqrt(pi)).
        count, width = 8192, 0.9 * 8192**-0.2
        error = np.sqrt(exact.max() / np.sqrt(GAUSSIAN_COVARIANCE[i, i]) / (2.0 * count * width * np.sqrt(np.pi)))
        assert np.max(np.abs(height - exact)) < 0.5 * width**2 * exact.max() + 4.0 * error
        bars = axes[i, i].patches
        area = sum(bar.get_width() * bar.get_height() for bar in bars)
        assert abs(area - 1.0) < 1e-9
        assert axes[i, i].get_ylim()[1] > max(height.max(), max(bar.get_height() for bar in bars))


def test_contours_hold_half_and_nine_tenths_of_the_model():
    axes = plot_density(KEY, GAUSSIAN, ROWS)
    (contours,) = axes[1, 0].collections
    precision = np.linalg.inv(GAUSSIAN_COVARIANCE)
    fresh = np.asarray(GAUSSIAN.sample(jr.key(5), (20_000,)))
    for path, share in zip(contours.get_paths(), (0.9, 0.5), strict=True):
        away = path.vertices - GAUSSIAN_MEAN
        radius = np.mean(np.einsum("ni,ij,nj->n", away, precision, away))
        # In two dimensions the mass within a radius r is 1 - exp(-r^2 / 2).
        assert abs(1.0 - np.exp(-0.5 * radius) - share) < 0.02
        held = path.contains_points(fresh).mean()
        # Both samples are finite, and the kernel makes the level uncertain by as much again.
        assert abs(held - share) < 3.0 * np.sqrt(share * (1.0 - share) * (1 / 8192 + 1 / 20_000)) + 0.01


@pytest.mark.slow
def test_labels_are_those_of_the_sites():
    values = NAMED_DENSITY.unpack(NAMED_DENSITY.sample(jr.key(3), (300,)))
    axes = plot_density(KEY, NAMED_DENSITY, values)
    assert axes.shape == (4, 4)
    assert labels(axes[-1]) == ["a", "tau", "v[0]", "v[1]"]
    axes = plot_density(KEY, NAMED_DENSITY, values, coordinates=["v", "a"])
    assert labels(axes[-1]) == ["v[0]", "v[1]", "a"]
    (points,) = lines(axes[2, 1], DATA_COLOR)
    column = {(float(v), float(a)) for v, a in zip(values["v"][:, 1], values["a"], strict=True)}
    assert {tuple(point) for point in points} == column


@pytest.mark.parametrize(
    ("coordinates", "found"),
    [("v[1]", ["v[1]"]), (1, ["tau"]), ([2, "a"], ["v[0]", "a"]), (["v", 3], ["v[0]", "v[1]"])],
)
def test_coordinates_are_chosen_by_name_label_or_number(coordinates, found):
    events = np.asarray(NAMED_DENSITY.sample(jr.key(3), (100,)))
    assert labels(plot_density(KEY, NAMED_DENSITY, events, coordinates=coordinates)[-1]) == found


def test_names_replace_labels():
    axes = plot_density(KEY, GAUSSIAN, ROWS, names=["mass", "age"], coordinates="age")
    assert axes.shape == (1, 1)
    assert labels(axes[0]) == ["age"]
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["data", "model"]


def test_an_event_that_is_a_number():
    density = fd.FlowDensity(ExactGaussianFlow(np.zeros(1), np.eye(1), support=constraints.positive, event_shape=()))
    axes = plot_density(KEY, density, np.asarray(density.sample(KEY, (200,))))
    assert labels(axes[0]) == ["x"]
    ((x, _),) = (line.T for line in lines(axes[0, 0], MODEL_COLOR))
    assert x.min() > -0.01


def test_the_samples_of_many_contexts_are_put_together():
    """Contexts that move the mean by several standard deviations: the marginal has their spread too."""
    contexts = np.random.default_rng(6).normal(size=(500, 3)) @ np.diag([5.0, 1.0, 1.0])
    density = CONDITIONAL.given(contexts)
    rows = np.asarray(density.sample(jr.key(7)))
    axes = plot_density(KEY, density, rows)
    ((x, height),) = (line.T for line in lines(axes[0, 0], MODEL_COLOR))
    step = x[1] - x[0]
    mean = np.sum(x * height) * step
    variance = np.sum((x - mean) ** 2 * height) * step
    means = contexts @ SLOPE[0]
    expected = GAUSSIAN_COVARIANCE[0, 0] + means.var()
    # Of the variance of 8,192 samples, and of the panel's ends, which cut 0.1 % off.
    assert abs(variance / expected - 1.0) < 4.0 * np.sqrt(2.0 / 8192) + 0.03


def test_an_amortized_density_is_drawn_by_its_flow():
    axes, fast = (plot_density(KEY, density, ROWS)[0, 0] for density in (GAUSSIAN, amortized(GAUSSIAN)))
    np.testing.assert_array_equal(lines(axes, MODEL_COLOR)[0], lines(fast, MODEL_COLOR)[0])


def test_errors_are_those_of_the_diagnosis():
    within, beyond = plot_errors(DIAGNOSIS)
    (points,) = lines(within, MODEL_COLOR)
    np.testing.assert_allclose(points, np.stack([NEAR.log_probs, NEAR.errors], axis=1))
    (band,) = within.patches
    assert np.isclose(band.get_y(), -0.3)
    assert np.isclose(band.get_height(), 0.6)
    assert labels([within, beyond], "y") == ["error of log_prob, nats"] * 2
    clouds = lines(beyond, MODEL_COLOR, ".")
    assert [text.get_text() for text in beyond.get_xticklabels()] == ["2x", "4x", "10x"]
    for place, (cloud, excess) in enumerate(zip(clouds, EXCESS, strict=True)):
        np.testing.assert_allclose(cloud[:, 1], excess, atol=1e-12)
        assert np.all(np.abs(cloud[:, 0] - place) < 0.5)
    bars = lines(beyond, MODEL_COLOR, "None")
    np.testing.assert_allclose([bar[0, 1] for bar in bars], np.percentile(EXCESS, 99.0, axis=1))
    (limit,) = (line for line in beyond.lines if line.get_linestyle() == "--")
    assert set(limit.get_ydata()) == {1.5}


@pytest.mark.slow
def test_a_diagnosis_can_be_drawn(mixture_fit):
    found = fd.diagnose(KEY, mixture_fit.density, MIXTURE.sample(np.random.default_rng(77), 1000), progress=False)
    within, _ = plot_errors(found)
    assert np.isclose(within.patches[0].get_height(), 2.0 * found["log_prob.rmse"].value)
    assert len(plot_residuals(found)[0].containers[0].lines[0].get_xdata()) == 8


def test_an_exact_density_has_no_errors_to_draw():
    evidence = {
        "log_prob": replace(NEAR, errors=np.zeros(50)),
        "tails": replace(BEYOND, log_probs=np.zeros((3, 40)), exact=np.zeros((3, 40))),
    }
    findings = (replace(DIAGNOSIS.findings[0], value=0.0), DIAGNOSIS.findings[1])
    within, _ = plot_errors(replace(DIAGNOSIS, evidence=evidence, findings=findings))
    assert not lines(within, MODEL_COLOR)[0][:, 1].any()
    within.figure.canvas.draw()


@pytest.mark.parametrize("source", [RESIDUALS, REPORT, DIAGNOSIS], ids=["residuals", "report", "diagnosis"])
def test_residuals_have_bars_of_two_standard_errors(source):
    mean, others = plot_residuals(source)
    (bars,) = mean.containers
    middle, _, (ranges,) = bars.lines
    np.testing.assert_allclose(middle.get_xydata(), np.stack([[0.25, 0.75, 1.25], RESIDUALS.mean[:, 0]], axis=1))
    heights = np.array([segment[:, 1] for segment in ranges.get_segments()])
    np.testing.assert_allclose(np.diff(heights, axis=1)[:, 0], 4.0 * RESIDUALS.standard_error[:, 0])
    (points,) = lines(others, DATA_COLOR)
    np.testing.assert_allclose(points[:, 1], RESIDUALS.z[:, 1:].ravel())
    # Each in its own bin of time.
    np.testing.assert_array_equal(np.digitize(points[:, 0], RESIDUALS.times) - 1, [0, 0, 1, 1, 2, 2])
    (band,) = others.patches
    assert (band.get_y(), band.get_height()) == (-2.0, 4.0)
    assert "4 of 6 beyond 2" not in others.get_legend().get_texts()[0].get_text()
    beyond = int(np.sum(np.abs(RESIDUALS.z[:, 1:]) > 2.0))
    assert others.get_legend().get_texts()[0].get_text().startswith(f"{beyond} of 6 beyond 2")
    assert "{:+.2g} ± {:.2g} nats".format(*RESIDUALS.bias) in mean.get_legend().get_texts()[0].get_text()
    assert mean.get_xlim() == others.get_xlim() == (0.0, 1.5)


def test_training_has_a_panel_for_each_stage_and_marks_what_was_kept():
    axes = plot_training(REPORT)
    assert axes.shape == (2,)
    for axis, (stage, history), kept in zip(axes, REPORT.histories.items(), [(20, 1.7), (10, -1.8)], strict=True):
        (training,) = lines(axis, DATA_COLOR)
        np.testing.assert_array_equal(training, np.stack([history.step, history.train], axis=1)[1:])
        validation, marked = lines(axis, MODEL_COLOR)
        np.testing.assert_array_equal(validation, np.stack([history.step, history.validation], axis=1))
        np.testing.assert_array_equal(marked, [kept])
        assert axis.get_ylabel().startswith(f"{stage} loss")
    assert axes[1].get_ylabel() == "divergence loss, nats² + constant"


def test_held_out_likelihood_has_an_axis_of_its_own():
    history = History((0, 10, 20), (1.0, 0.9, 0.8), (1.41, 1.39, 1.40), best_step=10, gain=(0.04, 0.01))
    (axis,) = plot_training(fd.results.FitReport({"flow": history}, {}))
    assert not lines(axis, MODEL_COLOR)
    (right,) = [each for each in axis.figure.axes if each is not axis]
    validation, marked = lines(right, MODEL_COLOR)
    np.testing.assert_array_equal(validation[:, 1], history.validation)
    np.testing.assert_array_equal(marked, [(10, 1.39)])
    assert "nats per dimension" in right.get_ylabel()
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation", "kept, step 10"]


def draws(*moved, count=1000):
    """A posterior of the plane: normal, with half the prior's standard deviation, about moved means; one event for each."""
    noise = np.random.default_rng(8).normal(size=(2, count, len(moved), 2))
    factor = 0.5 * np.linalg.cholesky(GAUSSIAN_COVARIANCE)
    events = GAUSSIAN_MEAN + np.asarray(moved)[:, None] + noise @ factor.T
    return events[:, :, 0] if len(moved) == 1 else events


def test_prior_and_posterior_are_the_closed_form():
    axes = plot_prior_posterior(KEY, GAUSSIAN, posterior(theta=draws(1.0), other=np.zeros((2, 1000))), site="theta")
    assert axes.shape == (2,)
    assert labels(axes) == ["theta[0]", "theta[1]"]
    for i, axis in enumerate(axes):
        for color, moved, scale in ((MODEL_COLOR, 0.0, 1.0), (POSTERIOR_COLOR, 1.0, 0.5)):
            ((x, height),) = (line.T for line in lines(axis, color))
            exact = norm(GAUSSIAN_MEAN[i] + moved, scale * np.sqrt(GAUSSIAN_COVARIANCE[i, i])).pdf(x)
            # As above, for 2,000 draws.
            width = 0.9 * 2000**-0.2
            error = np.sqrt(1.0 / (2.0 * 2000 * width * np.sqrt(np.pi)) * np.sqrt(2.0 * np.pi)) * exact.max()
            assert np.max(np.abs(height - exact)) < 0.5 * width**2 * exact.max() + 4.0 * error
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["prior", "posterior"]


def test_each_event_of_a_plate_has_a_line():
    axes = plot_prior_posterior(KEY, GAUSSIAN, posterior(theta=draws(-2.0, 0.0, 2.0)))
    found = lines(axes[0], POSTERIOR_COLOR)
    peaks = [line[np.argmax(line[:, 1]), 0] for line in found]
    np.testing.assert_allclose(peaks, GAUSSIAN_MEAN[0] + np.array([-2.0, 0.0, 2.0]), atol=0.4)
    assert len(lines(axes[0], MODEL_COLOR)) == 1
    assert len(axes[0].get_legend().get_texts()) == 2


def test_named_sites_are_found_in_a_posterior():
    values = {name: np.asarray(v) for name, v in NAMED_DENSITY.unpack(NAMED_DENSITY.sample(KEY, (2, 200))).items()}
    axes = plot_prior_posterior(KEY, NAMED_DENSITY, posterior(mu=np.zeros((2, 200)), **values))
    assert labels(axes) == ["a", "tau", "v[0]", "v[1]"]
    assert labels(plot_prior_posterior(KEY, NAMED_DENSITY, posterior(**values), coordinates="v")) == ["v[0]", "v[1]"]


def test_chains_that_are_stuck_in_different_modes_are_drawn():
    stuck = np.broadcast_to(np.array([[[0.0, -2.0]], [[3.0, -2.0]]]), (2, 500, 2))
    axes = plot_prior_posterior(KEY, GAUSSIAN, posterior(theta=stuck))
    ((x, height),) = (line.T for line in lines(axes[0], POSTERIOR_COLOR))
    assert {round(float(v)) for v in x[height > 0.5 * height.max()]} == {0, 3}


@pytest.mark.parametrize(
    ("draw", "count"),
    [
        (lambda axes: plot_density(KEY, GAUSSIAN, ROWS, axes=axes.reshape(2, 2)), 4),
        (lambda axes: plot_errors(DIAGNOSIS, axes=axes), 2),
        (lambda axes: plot_residuals(RESIDUALS, axes=axes), 2),
        (lambda axes: plot_training(REPORT, axes=axes), 2),
        (lambda axes: plot_prior_posterior(KEY, GAUSSIAN, posterior(theta=draws(0.0)), axes=axes), 2),
        (lambda axes: plot_ranks(UNIFORM_RANKS, axes=axes), 2),
    ],
    ids=["density", "errors", "residuals", "training", "prior_posterior", "ranks"],
)
def test_axes_that_are_given_are_drawn_into(draw, count):
    _, axes = plt.subplots(1, count)
    found = draw(axes)
    assert list(found.flat) == list(axes)
    assert all(axis.lines or not axis.axison for axis in axes)
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match=rf"^plot_\w+ expected `axes` as {count} matplotlib Axes; got"):
        draw(np.empty(3, object) if count == 2 else np.append(axes[:3], [None]))


def test_ranks_that_are_wrong_leave_their_band():
    ranks = np.random.default_rng(0).integers(0, 100, 300)
    found = fd.results.Ranks({"mu": ranks, "v": np.stack([ranks, 0.5 * ranks + 25], axis=1).astype(int)}, 99, ranks)
    axes = plot_ranks(found)
    assert [axis.get_title() for axis in axes] == ["mu", "v[0]", "v[1]", "expected coverage"]
    low, high = band(300, 99, 1.0 - found.threshold) - uniform_distribution(99)
    for axis, wrong in zip(axes, (False, False, True, False), strict=True):
        line, zero = axis.lines
        np.testing.assert_allclose(line.get_xdata(), uniform_distribution(99))
        assert np.any((line.get_ydata() < low) | (line.get_ydata() > high)) == wrong
        corners = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == pytest.approx((low.min(), high.max()))
        assert not np.any(zero.get_ydata())
    assert found.bad == ("v",)


def test_one_axes_by_itself():
    _, axis = plt.subplots()
    report = fd.results.FitReport({"flow": REPORT.histories["flow"]}, {})
    assert plot_training(report, axes=axis)[0] is axis


UNIFORM_RANKS = fd.results.Ranks({"mu": np.arange(100)}, 99, np.arange(100))
WIDE = fd.FlowDensity(ExactGaussianFlow(np.zeros(9), np.eye(9)))
BARE = fd.results.FitReport(REPORT.histories, {})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot_density(KEY, "density", ROWS), TypeError, "expected `density`"),
        (lambda: plot_density(KEY, CONDITIONAL, ROWS), ValueError, r".* density.given\(context\)"),
        (lambda: plot_density(KEY, GAUSSIAN, ROWS[:, :1]), ValueError, "expected `data`"),
        (
            lambda: plot_density(KEY, WIDE, RNG.normal(size=(20, 9))),
            ValueError,
            r"expected `coordinates` as 1 to 8 of x\[0\], .* which selects 9. Fix: coordinates=\['x\[0\]', 'x\[1\]'\]",
        ),
        (lambda: plot_density(KEY, GAUSSIAN, ROWS, coordinates="y"), ValueError, "expected `coordinates` .* got 'y'"),
        (
            lambda: plot_density(KEY, GAUSSIAN, ROWS, coordinates=[]),
            ValueError,
            "expected `coordinates` .* selects 0",
        ),
        (lambda: plot_density(KEY, GAUSSIAN, ROWS, coordinates=2), ValueError, "expected `coordinates` .* got 2"),
        (lambda: plot_density(KEY, GAUSSIAN, ROWS, names=["a"]), ValueError, "expected `names` as 2 labels, .* got 1"),
        (lambda: plot_errors(REPORT), TypeError, "expected `diagnosis` .* got FitReport"),
        (
            lambda: plot_errors(fd.results.Diagnosis((), {"tails": BEYOND}, 1.0)),
            ValueError,
            r"expected `diagnosis` with the checks 'log_prob' and 'tails'; it has \['tails'\]. Fix: diagnosis = fd.diagnose",
        ),
        (lambda: plot_residuals(3), TypeError, "expected `residuals` .* got int"),
        (lambda: plot_residuals(BARE), TypeError, "expected .* FitReport without residuals"),
        (lambda: plot_training(DIAGNOSIS), TypeError, "expected `report` .* got Diagnosis"),
        (lambda: plot_prior_posterior(KEY, 3, None), TypeError, "expected `density`"),
        (lambda: plot_prior_posterior(KEY, GAUSSIAN, ROWS), TypeError, "expected `posterior`"),
        (
            lambda: plot_prior_posterior(KEY, GAUSSIAN, posterior(theta=np.zeros((2, 10, 3)))),
            ValueError,
            "expected `site`",
        ),
        (
            lambda: plot_prior_posterior(KEY, CONDITIONAL, posterior(theta=draws(0.0))),
            ValueError,
            "expected `density` with its context",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=rf"^plot_\w+ {message}"):
        call()
    assert not plt.get_fignums()


def test_a_density_given_its_context_is_drawn():
    given = CONDITIONAL.given(CONTEXTS[1])
    ((x, height),) = (
        line.T for line in lines(plot_density(KEY, given, np.asarray(given.sample(KEY, (100,))))[0, 0], MODEL_COLOR)
    )
    mean = np.sum(x * height) / np.sum(height)
    expected = GAUSSIAN_MEAN[0] + SLOPE[0] @ CONTEXTS[1]
    assert abs(mean - expected) < 4.0 * np.sqrt(GAUSSIAN_COVARIANCE[0, 0] / 8192) + 0.01


@pytest.mark.slow
def test_matplotlib_is_imported_only_when_something_is_drawn():
    code = "import sys, flowdensity.diagnostics.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
