"""Pictures of a density, of its errors and of its training, on matplotlib's axes.

Each function draws into the axes that it is given, or into a new figure, and returns them; it neither shows nor saves. The data are
grey, the model blue and a posterior orange throughout; fonts are those of the user's style.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.random as jr
import numpy as np
from scipy.ndimage import gaussian_filter

from .._typing import ArrayLike, Key
from ..data.sites import Sites
from ..data.tables import Named
from ..distributions.amortized import AmortizedDensity
from ..distributions.flow import FlowDensity
from ..divergence.calibration import Residuals
from ..training.prepare import event_rows
from ..training.report import FitReport
from .findings import Diagnosis, Finding
from .log_prob_checks import AGREEMENT, TAILS
from .posterior import draws
from .support import _events

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # matplotlib is imported where a figure is made: it takes a second

DATA, MODEL, POSTERIOR = "0.55", "#0072B2", "#D55E00"
"""Colours that the colour-blind tell apart (Okabe and Ito 2008, "Color universal design")."""
SHARES = (0.5, 0.9)
"""Of the model's samples, that contours hold."""
SAMPLES = 8192
"""Of the model, that a line or a contour is drawn from."""
POINTS = 2000
"""Rows of the data that are drawn as points at most."""
PAIRED, SINGLE = 8, 24
"""Coordinates that are drawn at most: in pairs, and each by itself."""
OUTER = 0.001
"""Share of the values at either end that may lie beyond a panel."""
CELLS = (1024, 128)
"""Of the grids that densities are smoothed on, a side, in one and in two dimensions."""
LOSSES = {"divergence": ", squared nats less a constant", "likelihood": ", nats per dimension"}
"""What the losses of a stage are, where they have a unit."""

Coordinates: TypeAlias = str | int | Sequence[str | int]


def plot_density(
    key: Key,
    density: FlowDensity | AmortizedDensity,
    data: ArrayLike | Named,
    *,
    coordinates: Coordinates | None = None,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw a learned density against data: a panel for each coordinate, and one for each pair.

    On the diagonal are a histogram of the data and the density of the model's samples; below it the data, and contours that hold
    50 % and 90 % of the model's samples. A panel holds all but 0.1 % of the values at either end. `axes = plot_density(key,
    density, held_out)` draws rows that the density was not trained on.

    Args:
        key: JAX PRNG key.
        density: the density, with its context if it has one; where that has batch axes, say one context for each row of `data`,
            the samples for all of them are put together.
        data: rows, shape `(n, *event_shape)` or by name; at most 2,000 of them are drawn as points.
        coordinates: which to draw, at most eight: the name of a site, which stands for all of its coordinates, a label such as
            "v[1]", or a number from zero; by default all.
        names: labels of all coordinates of an event; by default those of the density's sites, or x[0], x[1] and so on.
        axes: a square of axes to draw into; by default those of a new figure.

    Returns:
        Axes, shape `(coordinates, coordinates)`; those above the diagonal have no frame.

    Raises:
        TypeError, ValueError: if an argument is unusable; raised before any work is done.
    """
    caller = "plot_density"
    flow = _flow(caller, density)
    rows = event_rows(caller, "data", flow.model, data)
    labels = _labels(caller, flow, names, "x")
    chosen = _chosen(caller, labels, coordinates, PAIRED)
    count = len(chosen)
    grid = _panels(caller, axes, (count, count), count**2, (2.0, 2.0) if count > 1 else (4.0, 3.0))
    grid = grid.reshape(count, count)
    sample_key, row_key = jr.split(key)
    rows = rows.reshape(len(rows), -1)[:, chosen]
    samples = _samples(sample_key, flow)[:, chosen]
    shown = rows[np.asarray(jr.permutation(row_key, len(rows)))[:POINTS]]
    spans = [_span(*columns) for columns in zip(rows.T, samples.T, strict=True)]
    for i, j in np.ndindex(count, count):
        axis = grid[i, j]
        if i < j:
            axis.set_axis_off()
            continue
        axis.set_xlim(*spans[j])
        if i == j:
            _histogram(axis, rows[:, i], spans[i])
            _line(axis, samples[:, i], color=MODEL, label="model")
        else:
            axis.plot(shown[:, j], shown[:, i], ".", color=DATA, markersize=2, rasterized=True, zorder=1)
            _contours(axis, samples[:, [j, i]])
            axis.set_ylim(*spans[i])
        axis.tick_params(labelbottom=i == count - 1, labelleft=i > j == 0)
        axis.set_xlabel(labels[chosen[j]] if i == count - 1 else "")
        axis.set_ylabel(labels[chosen[i]] if i > j == 0 else "")
    corner = grid[0, -1]
    if count > 1:
        corner.plot([], [], ".", color=DATA, label="data")
        for share, width in zip(SHARES, _widths(), strict=True):
            corner.plot([], [], color=MODEL, linewidth=width, label=f"model, {share:.0%}")
    corner.legend(frameon=False, loc="upper right")
    return grid


def plot_errors(diagnosis: Diagnosis, *, axes: Any = None) -> np.ndarray:
    """Draw by how much `log_prob` is off: over its own value, and where samples are moved outwards.

    The band on the left is the root mean square that the diagnosis has found; above 64 dimensions the points have the noise of
    two Hutchinson averages in them, and it has not. On the right a bar marks the value that 99 % of the points keep below, and a
    dashed line the most that it may be. `axes = plot_errors(diagnose(key, density))` draws it for samples of the density.

    Args:
        diagnosis: of `diagnose`.
        axes: two axes to draw into; by default those of a new figure.

    Returns:
        Axes, shape `(2,)`.

    Raises:
        TypeError, ValueError: if an argument is unusable.
    """
    caller = "plot_errors"
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(
            f"{caller} expected `diagnosis` of type Diagnosis; got {type(diagnosis).__name__}. "
            "Fix: diagnosis = fd.diagnose(key, density)"
        )
    evidence = diagnosis.evidence
    within, beyond = _panels(caller, axes, (1, 2), 2, (4.0, 3.0))
    spread = _finding(diagnosis, AGREEMENT, "root mean square").value or 0.0
    within.axhspan(
        -spread, spread, color=MODEL, alpha=0.15, linewidth=0, label=f"root mean square, {spread:.2g} nats"
    )
    within.axhline(0.0, color="black", linewidth=0.8)
    within.plot(evidence.log_probs, evidence.errors, ".", color=MODEL, markersize=3, alpha=0.6)
    reach = 1.1 * max(spread, float(np.max(np.abs(evidence.errors))))
    within.set(xlabel="log density of the whitened data, nats", ylabel="error of log_prob, nats")
    if reach > 0.0:
        within.set_ylim(-reach, 1.3 * reach)  # above the points is the legend
    within.legend(frameon=False, loc="upper left")
    places = np.arange(len(evidence.factors))
    limit = _finding(diagnosis, TAILS, "99 %").threshold
    beyond.axhline(limit, color="black", linewidth=0.8, linestyle="--", label=f"the most it may be, {limit:.2g} nats")
    beyond.axhline(0.0, color="black", linewidth=0.8)
    for place, (own, exact) in zip(places, evidence.tails, strict=True):
        beyond.plot(place + _beside(len(own)), own - exact, ".", color=MODEL, markersize=3, alpha=0.6)
        beyond.hlines(np.percentile(own - exact, 99.0), place - 0.35, place + 0.35, color=MODEL, linewidth=2)
    beyond.hlines([], 0.0, 0.0, color=MODEL, linewidth=2, label="99 % are below")
    beyond.set_xticks(places, [f"{factor:g}x" for factor in evidence.factors])
    beyond.set(xlabel="samples moved outwards by", ylabel="error of log_prob, nats")
    low, high = beyond.get_ylim()
    beyond.set_ylim(low, high + 0.3 * (high - low))
    beyond.legend(frameon=False, loc="upper left")
    return np.array([within, beyond], object)


def plot_residuals(residuals: Residuals | Diagnosis | FitReport, *, axes: Any = None) -> np.ndarray:
    r"""Draw the Stein residuals of a learned divergence over the model's time: they are zero where it is right.

    On the left $\mathbb{E}[g - T]$, the mean error of the learned divergence; on the right the residuals for $f = g$ and each
    coordinate, in standard errors, those of a bin beside each other. `axes = plot_residuals(report)` draws those of a fit.

    Args:
        residuals: these, or the report or diagnosis that has them.
        axes: two axes to draw into; by default those of a new figure.

    Returns:
        Axes, shape `(2,)`.

    Raises:
        TypeError, ValueError: if an argument is unusable, or no divergence was learned.
    """
    caller = "plot_residuals"
    found = residuals.evidence.residuals if isinstance(residuals, Diagnosis) else residuals
    found = found.residuals if isinstance(found, FitReport) else found
    if found is None:
        raise ValueError(
            f"{caller} expected residuals of a learned divergence; this {type(residuals).__name__} has none, since none was "
            "learned. Fix: divergence, report = fd.fit_divergence(key, density.model, data)"
        )
    if not isinstance(found, Residuals):
        raise TypeError(
            f"{caller} expected `residuals` of type Residuals, Diagnosis or FitReport; got {type(residuals).__name__}. "
            "Fix: fd.plot_residuals(report)"
        )
    mean, others = _panels(caller, axes, (1, 2), 2, (4.0, 3.0))
    widths, middles = np.diff(found.times), 0.5 * (found.times[1:] + found.times[:-1])
    bias, error = found.bias
    for axis in (mean, others):
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set(xlabel="model time, noise to data", xlim=(found.times[0], found.times[-1]))
    mean.errorbar(
        middles, found.mean[:, 0], 2.0 * found.standard_error[:, 0], fmt="o", color=MODEL, markersize=4, capsize=2,
        label=f"implied bias of log_prob\n{bias:+.2g} ± {error:.1g} nats",
    )  # fmt: skip
    mean.set_ylabel("mean residual ± 2 standard errors,\nnats per unit of time")
    scores = found.z[:, 1:]
    places = middles[:, None] + widths[:, None] * 0.8 * _beside(scores.shape[1])
    outside = int(np.sum(np.abs(scores) > 2.0))
    others.axhspan(-2.0, 2.0, color=DATA, alpha=0.2, linewidth=0)
    others.plot(
        places.ravel(), scores.ravel(), ".", color=DATA, label=f"{outside} of {scores.size} beyond 2 (5 % expected)"
    )
    others.set_ylabel("residuals for f = g and coordinates,\nstandard errors")
    for axis in (mean, others):
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.3 * (high - low))
        axis.legend(frameon=False, loc="upper right")
    return np.array([mean, others], object)


def plot_training(report: FitReport, *, axes: Any = None) -> np.ndarray:
    """Draw the losses of each stage of a fit, and mark the step whose weights were kept.

    `axes = plot_training(report)` draws those of a fit.

    Args:
        report: of `fit_flow`, or of any other fit.
        axes: as many axes as there are stages, to draw into; by default those of a new figure.

    Returns:
        Axes, shape `(stages,)`.

    Raises:
        TypeError, ValueError: if an argument is unusable.
    """
    caller = "plot_training"
    if not isinstance(report, FitReport):
        raise TypeError(
            f"{caller} expected `report` of type FitReport; got {type(report).__name__}. "
            "Fix: density, report = fd.fit_flow(key, data)"
        )
    count = len(report.histories)
    panels = _panels(caller, axes, (1, count), count, (4.0, 3.0))
    for axis, (stage, history) in zip(panels, report.histories.items(), strict=True):
        kept = history.step.index(history.best_step)
        axis.plot(history.step, history.train, color=DATA, label="training")
        axis.plot(history.step, history.validation, color=MODEL, label="validation")
        axis.axvline(history.best_step, color=MODEL, linewidth=0.8, linestyle=":")
        axis.plot(
            history.best_step, history.validation[kept], "o", color=MODEL, label=f"kept, step {history.best_step}"
        )
        axis.set(xlabel="step", ylabel=f"loss of the {stage}{LOSSES.get(stage, '')}")
        axis.legend(frameon=False, loc="upper right")
    return panels


def plot_prior_posterior(
    key: Key,
    density: FlowDensity | AmortizedDensity,
    posterior: Any,
    *,
    site: str | None = None,
    coordinates: Coordinates | None = None,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw a learned prior against a posterior: the marginal density of each coordinate, by samples and by draws.

    Where the posterior has events in a plate, each has a line of its own. `axes = plot_prior_posterior(key, density,
    arviz.from_numpyro(mcmc))` draws those of a run of NUTS.

    Args:
        key: JAX PRNG key.
        density: the prior, as `plot_density` takes it.
        posterior: in arviz's form.
        site: variable of the posterior that has the events; by default the density's named sites, or the one variable of its
            event's shape.
        coordinates: which to draw, at most 24, as `plot_density` takes them; by default all.
        names: labels of all coordinates of an event; by default those of the density's sites, or x[0], x[1] and so on.
        axes: as many axes as there are coordinates, to draw into; by default those of a new figure.

    Returns:
        Axes, shape `(coordinates,)`.

    Raises:
        TypeError, ValueError: if an argument is unusable; raised before any work is done.
    """
    caller = "plot_prior_posterior"
    flow = _flow(caller, density)
    events = np.asarray(_events(caller, draws(caller, posterior), flow, site), np.float64)
    labels = _labels(caller, flow, names, site or "x")
    chosen = _chosen(caller, labels, coordinates, SINGLE)
    across = min(4, len(chosen))
    panels = _panels(caller, axes, (-(-len(chosen) // across), across), len(chosen), (2.6, 2.2))
    samples = _samples(key, flow)
    # One column of draws for each event of a plate.
    events = events.reshape(events.shape[0] * events.shape[1], -1, samples.shape[1])
    for axis, which in zip(panels, chosen, strict=True):
        _line(axis, samples[:, which], color=MODEL, label="prior")
        for number, column in enumerate(events[:, :, which].T):
            thin = {"linewidth": 0.8, "alpha": 0.6} if events.shape[1] > 1 else {}
            _line(axis, column, color=POSTERIOR, label="" if number else "posterior", **thin)
        axis.set_xlabel(labels[which])
        _no_heights(axis)
    panels[0].legend(frameon=False)
    return panels


def _flow(caller: str, density: Any) -> FlowDensity:
    """The flow of a density that can be sampled."""
    if not isinstance(density, FlowDensity | AmortizedDensity):
        raise TypeError(
            f"{caller} expected `density` of type FlowDensity or AmortizedDensity; got {type(density).__name__}. "
            "Fix: density, report = fd.fit_flow(key, data)"
        )
    flow = density.flow if isinstance(density, AmortizedDensity) else density
    if flow.context is None:
        raise ValueError(
            f"{caller} expected a density with its context; this conditional one has not been given one. "
            "Fix: density = density.given(context)"
        )
    return flow


def _samples(key: Key, flow: FlowDensity) -> np.ndarray:
    """At least `SAMPLES` events, of all contexts together, shape `(samples, coordinates)`."""
    each = -(-SAMPLES // math.prod(flow.batch_shape))
    return np.asarray(flow.sample(key, (each,)), np.float64).reshape(-1, math.prod(flow.event_shape))


def _labels(caller: str, flow: FlowDensity, names: Sequence[str] | None, stem: str) -> list[str]:
    """One for each coordinate of an event, as arviz writes them."""
    sites = Sites((stem,), (flow.event_shape,)) if flow.sites is None else flow.sites
    labels = [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name, shape in zip(sites.names, sites.shapes, strict=True)
        for index in np.ndindex(shape)
    ]
    if names is not None and len(names) != len(labels):
        raise ValueError(
            f"{caller} expected `names` with a label for each of the {len(labels)} coordinates of an event; got "
            f"{len(names)}. Fix: names={labels[:3]}{' and so on' if len(labels) > 3 else ''}"
        )
    return labels if names is None else list(names)


def _chosen(caller: str, labels: list[str], coordinates: Coordinates | None, most: int) -> list[int]:
    """Numbers of the coordinates to draw."""
    wanted = range(len(labels)) if coordinates is None else coordinates
    chosen: list[int] = []
    for one in [wanted] if isinstance(wanted, str | Integral) else wanted:
        found = [
            i
            for i, label in enumerate(labels)
            if (i == one if isinstance(one, Integral) else label == one or label.startswith(f"{one}["))
        ]
        if not found:
            raise ValueError(
                f"{caller} expected `coordinates` among {labels} or their numbers; got {one!r}. "
                f"Fix: coordinates={labels[:2]}"
            )
        chosen += [i for i in found if i not in chosen]
    if not 1 <= len(chosen) <= most:
        raise ValueError(
            f"{caller} expected at least 1 and at most {most} coordinates to draw; got {len(chosen)}. "
            f"Fix: coordinates={labels[:2]}"
        )
    return chosen


def _panels(caller: str, axes: Any, shape: tuple[int, int], count: int, size: tuple[float, float]) -> np.ndarray:
    """`count` axes in a row: those given, or of a new figure with a grid of them; `size` is that of each, in inches."""
    if axes is None:
        import matplotlib.pyplot as plt

        (rows, columns), (width, height) = shape, size
        figure, grid = plt.subplots(
            rows, columns, figsize=(columns * width, rows * height), squeeze=False, layout="constrained"
        )
        panels = grid.ravel()[:count]
        for spare in grid.ravel()[count:]:
            figure.delaxes(spare)
    else:
        panels = np.asarray(axes, object).ravel()
        if len(panels) != count or not all(hasattr(axis, "spines") for axis in panels):
            raise ValueError(
                f"{caller} expected `axes` with {count} of matplotlib's Axes; got {np.asarray(axes, object).shape} of "
                f"{type(panels[0]).__name__ if len(panels) else 'nothing'}. "
                f"Fix: figure, axes = matplotlib.pyplot.subplots({shape[0]}, {shape[1]})"
            )
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
    return panels


def _finding(diagnosis: Diagnosis, section: str, start: str) -> Finding:
    return next(f for f in diagnosis.findings if f.section == section and f.quantity.startswith(start))


def _beside(count: int) -> np.ndarray:
    """Places within (-1/2, 1/2), evenly filled, by which points of one category lie beside each other."""
    return (np.arange(count) + 0.5) / count - 0.5
