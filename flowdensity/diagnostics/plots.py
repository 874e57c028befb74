"""Plots of a density, its errors and its training, on matplotlib axes.

Each function draws into given axes or into a new figure, and returns the axes. It neither shows nor saves the figure. Data are
gray, the model is blue and a posterior orange; fonts are those of the user's style.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import jax.random as jr
import numpy as np

from .._checks import check_key, check_kind
from .._typing import ArrayLike, Key
from ..data.sites import Sites
from ..data.tables import Named
from ..data.whitened import event_rows
from ..distributions.checks import check_density, check_given
from ..distributions.flow import FlowDensity
from ..distributions.learned import AbstractLearnedDensity
from ..divergence.calibration import Residuals
from ..training.report import FitReport
from .axes import DATA_COLOR, MAX_SINGLE, MODEL_COLOR, POSTERIOR_COLOR, add_legend, draw_marginal, panels_of
from .findings import Diagnosis
from .posterior import draws, events_of
from .smoothing import smoothed_density, span_of

CONTOURS = {0.5: 1.6, 0.9: 0.8}
"""Line widths of contours, by the fraction of the model's samples inside the contour."""
NUM_SAMPLES = 8192
"""Number of model samples behind lines and contours."""
MAX_POINTS = 2000
"""Maximum number of data rows drawn as points."""
MAX_PAIRED = 8
"""Maximum number of coordinates in a plot of pairs."""
LOSS_UNITS = {"divergence": ", nats² + constant", "likelihood": ", nats per dimension"}
"""Units of the losses, by stage."""

Coordinates: TypeAlias = str | int | Sequence[str | int]


def plot_density(
    key: Key,
    density: AbstractLearnedDensity,
    data: ArrayLike | Named,
    *,
    coordinates: Coordinates | None = None,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Plot a learned density against data, with a panel for each coordinate and each pair of coordinates.

    The diagonal shows a histogram of the data and the density of the model's samples. The panels below it show the data, and
    contours around 50 % and 90 % of the model's samples. To compare with rows that the density was not trained on, use
    `axes = plot_density(key, density, held_out)`.

    Args:
        key: JAX PRNG key.
        density: the density, with a context if it is conditional. If the context has batch axes, for example one context for each
            row of `data`, the samples for all contexts are pooled.
        data: rows, shape `(n, *event_shape)` or by name; at most 2,000 of them are drawn as points.
        coordinates: coordinates to draw, at most eight. Each is the name of a site, for all of its coordinates; a label such as
            "v[1]"; or an index. All coordinates by default.
        names: labels of all coordinates of an event; by default those of the density's sites, or x[0], x[1] and so on.
        axes: square array of axes to draw into; by default axes of a new figure.

    Returns:
        Axes, shape `(coordinates, coordinates)`; axes above the diagonal are off.

    Raises:
        TypeError, ValueError: if an argument is invalid. Raised before any work is done.

    Examples:
        >>> axes = fd.plots.plot_density(key, density, data)
        >>> axes[0, 0].figure.savefig("density.png")
    """
    caller = "plot_density"
    check_key(caller, key)
    flow = _flow(caller, density)
    rows = event_rows(caller, "data", flow.model.scaling, data)
    labels, chosen = _chosen(caller, flow, names, "x", coordinates, MAX_PAIRED)
    count = len(chosen)
    size = min(2.0, 12.0 / count) if count > 1 else 3.5
    grid = panels_of(caller, axes, (count, count), count**2, (size, size)).reshape(count, count)
    sample_key, row_key = jr.split(key)
    rows, samples = rows.reshape(len(rows), -1)[:, chosen], _samples(sample_key, flow)[:, chosen]
    points = rows[np.asarray(jr.permutation(row_key, len(rows)))[:MAX_POINTS]]
    spans = [span_of(*columns) for columns in zip(rows.T, samples.T, strict=True)]
    for (i, j), axis in np.ndenumerate(grid):
        if i < j:
            axis.set_axis_off()
        elif i == j:
            inside = rows[(spans[i][0] < rows[:, i]) & (rows[:, i] < spans[i][1]), i]
            bins = min(len(np.histogram_bin_edges(inside, "fd")), 100)
            axis.hist(inside, bins, density=True, color=DATA_COLOR, alpha=0.4, label="data")
            draw_marginal(axis, samples[:, i], spans[i], color=MODEL_COLOR, label="model")
        else:
            axis.plot(
                points[:, j], points[:, i], ".", color=DATA_COLOR, alpha=0.5, markersize=2, rasterized=True, zorder=1
            )
            (x, y), heights, levels = smoothed_density(samples[:, [j, i]], (spans[j], spans[i]), CONTOURS)
            axis.contour(
                x, y, heights.T, levels=levels[::-1], colors=MODEL_COLOR, linewidths=list(CONTOURS.values())[::-1]
            )
            axis.set(xlim=spans[j], ylim=spans[i])
        axis.tick_params(labelbottom=i == count - 1, labelleft=i > j == 0)
        axis.set(xlabel=labels[j] if i == count - 1 else "", ylabel=labels[i] if i > j == 0 else "")
    if count > 1:
        grid[0, -1].plot([], [], ".", color=DATA_COLOR, label="data")
        for share, width in CONTOURS.items():
            grid[0, -1].plot([], [], color=MODEL_COLOR, linewidth=width, label=f"{100 * share:.0f} % of the model")
    grid[0, -1].legend(frameon=False, loc="upper right").set_in_layout(False)  # the legend is wider than a panel
    return grid


def plot_errors(diagnosis: Diagnosis, *, axes: Any = None) -> np.ndarray:
    """Plot the errors of `log_prob`, against its value and in the tails.

    The band on the left is the root mean square error of the diagnosis. Above 64 dimensions the points include the noise of two
    Hutchinson averages, which the band does not. On the right, samples are moved outwards. A bar marks the 99th percentile of
    their errors, and a dashed line marks its threshold. To plot the errors at samples of the density, use
    `axes = plot_errors(diagnose(key, density))`.

    Args:
        diagnosis: result of `diagnose`.
        axes: two axes to draw into; by default axes of a new figure.

    Returns:
        Axes, shape `(2,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Examples:
        >>> diagnosis = fd.diagnose(key, density)
        >>> axes = fd.plots.plot_errors(diagnosis)
    """
    caller = "plot_errors"
    check_kind(caller, "diagnosis", diagnosis, Diagnosis, "diagnosis = fd.diagnose(key, density)")
    if not {"log_prob", "tails"} <= set(diagnosis.evidence):
        raise ValueError(
            f"{caller} expected `diagnosis` with the checks 'log_prob' and 'tails'; it has {list(diagnosis.evidence)}. "
            "Fix: diagnosis = fd.diagnose(key, density)"
        )
    near, tails = diagnosis.evidence["log_prob"], diagnosis.evidence["tails"]
    first, second = panels = panels_of(caller, axes, (1, 2), 2, (4.0, 3.0))
    rms = diagnosis["log_prob.rmse"].value or 0.0
    first.axhspan(-rms, rms, color=MODEL_COLOR, alpha=0.15, linewidth=0, label=f"root mean square, {rms:.2g} nats")
    first.plot(near.log_probs, near.errors, ".", color=MODEL_COLOR, markersize=3, alpha=0.6)
    first.set_xlabel("log density of whitened coordinates, nats")
    for place, errors in enumerate(tails.log_probs - tails.exact):
        beside = place + np.linspace(-0.35, 0.35, len(errors))
        second.plot(beside, errors, ".", color=MODEL_COLOR, markersize=3, alpha=0.6)
        label = "" if place else "99 % are below"
        second.plot(beside[[0, -1]], [np.percentile(errors, 99.0)] * 2, color=MODEL_COLOR, linewidth=2, label=label)
    limit = diagnosis[f"tails.{tails.factors[0]:g}"].threshold
    second.axhline(limit, color="black", linewidth=0.8, linestyle="--", label="99 % should be below")
    second.set_xticks(range(len(tails.factors)), [f"{factor:g}x" for factor in tails.factors])
    second.set_xlabel("samples moved outwards by")
    for axis in panels:
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set_ylabel("error of log_prob, nats")
        add_legend(axis)
    return panels


def plot_residuals(residuals: Residuals | Diagnosis | FitReport, *, axes: Any = None) -> np.ndarray:
    r"""Plot the Stein residuals of a learned divergence over the model's time. The exact divergence has residuals of zero.

    The left panel shows the mean error of the learned divergence over time, $\mathbb{E}[g - T]$. The right panel shows residuals
    in standard errors, for the test functions $f = g$ and each coordinate. The test functions are side by side in each bin. To
    plot the residuals of a fit, use `axes = plot_residuals(report)`.

    Args:
        residuals: the residuals, or a report or diagnosis that contains them.
        axes: two axes to draw into; by default axes of a new figure.

    Returns:
        Axes, shape `(2,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid, or if there are no residuals because no divergence was learned.

    Examples:
        >>> divergence, report = fd.fit_divergence(key, density.model, data)
        >>> axes = fd.plots.plot_residuals(report)
    """
    caller = "plot_residuals"
    found = residuals.evidence.get("stein") if isinstance(residuals, Diagnosis) else residuals
    found = found.residuals if isinstance(found, FitReport) else found
    if not isinstance(found, Residuals):
        raise TypeError(
            f"{caller} expected `residuals` of a learned divergence, or a Diagnosis or FitReport that has them; got "
            f"{type(residuals).__name__}{' without residuals' if found is None else ''}. "
            "Fix: divergence, residuals = fd.fit_divergence(key, density.model, data)"
        )
    first, second = panels = panels_of(caller, axes, (1, 2), 2, (4.0, 3.0))
    widths, middles, scores = np.diff(found.times), 0.5 * (found.times[1:] + found.times[:-1]), found.z[:, 1:]
    label = "mean ± 2 standard errors\nimplied bias {:+.2g} ± {:.2g} nats".format(*found.bias)
    first.errorbar(middles, found.mean[:, 0], 2.0 * found.standard_error[:, 0], fmt="o", color=MODEL_COLOR, label=label)
    first.set_ylabel(r"$g - T$, nats per unit of time")
    second.axhspan(-2.0, 2.0, color=DATA_COLOR, alpha=0.2, linewidth=0)
    places = middles[:, None] + widths[:, None] * np.linspace(-0.35, 0.35, scores.shape[1])
    label = f"{np.sum(np.abs(scores) > 2.0)} of {scores.size} beyond 2 (5 % expected)"
    second.plot(places.ravel(), scores.ravel(), ".", color=DATA_COLOR, label=label)
    second.set_ylabel("other residuals, standard errors")
    for axis in panels:
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set(xlabel="model time, noise to data", xlim=found.times[[0, -1]])
        add_legend(axis)
    return panels


def plot_training(report: FitReport, *, axes: Any = None) -> np.ndarray:
    """Plot the losses of each stage of a fit, and mark the step of the final weights: `axes = plot_training(report)`.

    If validation uses the likelihood of held-out rows, minus their log density has a second axis on the right, in
    `axis.figure.axes`.

    Args:
        report: report of `fit_flow` or any other fit.
        axes: axes to draw into, one for each stage; by default axes of a new figure.

    Returns:
        Axes, shape `(stages,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Examples:
        >>> axes = fd.plots.plot_training(report)
        >>> axes[0].figure.savefig("training.png")
    """
    caller = "plot_training"
    check_kind(caller, "report", report, FitReport, "density, report = fd.fit_flow(key, data)")
    panels = panels_of(caller, axes, (1, len(report.histories)), len(report.histories), (4.0, 3.0))
    for axis, (stage, history) in zip(panels, report.histories.items(), strict=True):
        best = history.validation[history.step.index(history.best_step)]
        # The first entry is not a training loss, and may have another unit.
        axis.plot(history.step[1:], history.train[1:], color=DATA_COLOR, linewidth=1, label="training")
        axis.set(xlabel="step", ylabel=f"{stage} loss{LOSS_UNITS.get(stage, '')}")
        panel = [axis] if history.gain is None else [axis, axis.twinx()]
        judged = panel[-1]
        judged.plot(history.step, history.validation, color=MODEL_COLOR, label="validation")
        judged.plot(history.best_step, best, "o", color=MODEL_COLOR, label=f"kept, step {history.best_step}")
        if history.gain is not None:
            judged.set_ylabel("minus held-out log density,\nnats per dimension", color=MODEL_COLOR)
            judged.tick_params(axis="y", labelcolor=MODEL_COLOR)
            judged.spines["top"].set_visible(False)
        add_legend(*panel)
    return panels


def plot_prior_posterior(
    key: Key,
    density: AbstractLearnedDensity,
    posterior: Any,
    *,
    site: str | None = None,
    coordinates: Coordinates | None = None,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Plot the marginal densities of a learned prior and a posterior, one panel for each coordinate.

    Each event of a plate has its own line. To plot a run of NUTS, use
    `axes = plot_prior_posterior(key, density, arviz.from_numpyro(mcmc))`.

    Args:
        key: JAX PRNG key.
        density: the prior, as in `plot_density`.
        posterior: the posterior in arviz's form.
        site: variable of the posterior with the events; by default the named sites of the density, or the only variable with the
            event shape.
        coordinates: coordinates to draw, at most 24, as in `plot_density`; by default all.
        names: labels, as in `plot_density`.
        axes: axes to draw into, one for each coordinate; by default axes of a new figure.

    Returns:
        Axes, shape `(coordinates,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid. Raised before any work is done.

    Examples:
        >>> posterior = az.from_numpyro(mcmc, log_likelihood=False)
        >>> axes = fd.plots.plot_prior_posterior(key, density, posterior)
        >>> axes[0].figure.savefig("posterior.png")
    """
    caller = "plot_prior_posterior"
    check_key(caller, key)
    flow = _flow(caller, density)
    events = events_of(caller, draws(caller, posterior), flow, site)
    labels, chosen = _chosen(caller, flow, names, site or "x", coordinates, MAX_SINGLE)
    panels = panels_of(caller, axes, (-(-len(chosen) // 4), min(4, len(chosen))), len(chosen), (2.6, 2.2))
    samples = _samples(key, flow)
    # Each column has the draws of one event of a plate, with chains interleaved. The bandwidth is chosen by comparing the halves
    # of a column, and both halves should contain all chains.
    events = events.swapaxes(0, 1).reshape(events.shape[0] * events.shape[1], -1, samples.shape[1])
    thin = {} if events.shape[1] == 1 else {"linewidth": 0.8, "alpha": 0.6}
    for axis, which, label in zip(panels, chosen, labels, strict=True):
        span = span_of(samples[:, which], events[:, :, which])
        draw_marginal(axis, samples[:, which], span, color=MODEL_COLOR, label="prior")
        for number, column in enumerate(events[:, :, which].T):
            draw_marginal(axis, column, span, color=POSTERIOR_COLOR, label="" if number else "posterior", **thin)
        axis.set_xlabel(label)
    panels[0].legend(frameon=False)
    return panels


def _flow(caller: str, density: Any) -> FlowDensity:
    """Check that a density can be sampled, and return its flow."""
    check_density(caller, density)
    check_given(caller, density)
    return density.flow


def _samples(key: Key, flow: FlowDensity) -> np.ndarray:
    """Draw at least `NUM_SAMPLES` events, pooled over contexts, shape `(samples, coordinates)`."""
    each = -(-NUM_SAMPLES // int(np.prod(flow.batch_shape)))
    return np.asarray(flow.sample(key, (each,)), np.float64).reshape(-1, int(np.prod(flow.event_shape)))


def _chosen(
    caller: str, flow: FlowDensity, names: Sequence[str] | None, stem: str, coordinates: Coordinates | None, most: int
) -> tuple[list[str], list[int]]:
    """Return labels, in arviz's notation, and indices of the coordinates to draw."""
    sites = Sites((stem,), (flow.event_shape,)) if flow.sites is None else flow.sites
    labels = sites.labels
    if names is not None and len(names) != len(labels):
        raise ValueError(
            f"{caller} expected `names` as {len(labels)} labels, one for each coordinate; got {len(names)}. Fix: names=None"
        )
    labels = labels if names is None else list(names)
    wanted = range(len(labels)) if coordinates is None else coordinates
    wanted = [wanted] if isinstance(wanted, str | int) else wanted
    found = [[i for i, name in enumerate(labels) if one in (i, name) or name.startswith(f"{one}[")] for one in wanted]
    chosen = list(dict.fromkeys(chain(*found)))
    if not all(found) or not 1 <= len(chosen) <= most:
        raise ValueError(
            f"{caller} expected `coordinates` as 1 to {most} of {', '.join(labels[:9])}{' ...' if len(labels) > 9 else ''}; "
            f"got {coordinates!r}, which selects {len(chosen)}. Fix: coordinates={labels[:2]}"
        )
    return [labels[i] for i in chosen], chosen
