"""Plot of the ranks of true values among posterior draws."""

from typing import Any

import numpy as np

from .._checks import check_kind
from ..data.sites import Sites
from .axes import DATA_COLOR, MAX_SINGLE, MODEL_COLOR, add_legend, panels_of
from .ranks import COVERAGE, Ranks
from .uniform import band, ranks_up_to_points, uniform_distribution


def plot_ranks(ranks: Ranks, *, axes: Any = None) -> np.ndarray:
    """Plot the empirical distribution of ranks less the uniform one, with its simultaneous band.

    There is a panel for each element of each latent site, and one for the expected coverage. A line that leaves its band is a
    fault. A line that rises first and then falls below zero belongs to posteriors that are too narrow, one that falls first to
    posteriors that are too wide, and one that stays on one side of zero to biased posteriors. If all posteriors are right, all
    lines are within their bands with a probability of at least 99 %. To plot the check of an amortized posterior, use
    `axes = plot_ranks(posterior.check(key))`.

    Args:
        ranks: result of `simulation_based_calibration` or of `AmortizedPosterior.check`, with at most 24 elements.
        axes: axes to draw into, one for each panel; by default axes of a new figure.

    Returns:
        Axes, shape `(panels,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Examples:
        >>> ranks = fd.simulation_based_calibration(key, model, model_kwargs={"y": observed})
        >>> axes = fd.plots.plot_ranks(ranks)
    """
    caller = "plot_ranks"
    check_kind(caller, "ranks", ranks, Ranks, "ranks = fd.simulation_based_calibration(key, model)")
    sites = Sites(tuple(ranks.ranks), tuple(each.shape[1:] for each in ranks.ranks.values()))
    columns = np.concatenate([each.reshape(len(each), -1) for each in ranks.ranks.values()], axis=1).T
    if len(columns) > MAX_SINGLE:
        first = next(iter(ranks.ranks))
        raise ValueError(
            f"{caller} expected ranks of at most {MAX_SINGLE} elements; got {len(columns)}. "
            f"Fix: few = ranks.ranks[{first!r}].reshape(len(ranks.coverage), -1)[:, :{MAX_SINGLE}]; "
            f"ranks = fd.results.Ranks({{{first!r}: few}}, ranks.draws, ranks.coverage)"
        )
    labels, count = [*sites.labels, COVERAGE], len(columns) + 1
    panels = panels_of(caller, axes, (-(-count // 4), min(4, count)), count, (2.6, 2.2))
    uniform = uniform_distribution(ranks.draws)
    low, high = band(len(ranks.coverage), ranks.draws, 1.0 - ranks.threshold) - uniform
    for axis, label, values in zip(panels, labels, [*columns, ranks.coverage], strict=True):
        below = ranks_up_to_points(values, ranks.draws) / len(values)
        axis.fill_between(uniform, low, high, step="mid", color=DATA_COLOR, alpha=0.3, linewidth=0, label="band")
        axis.step(uniform, below - uniform, where="mid", color=MODEL_COLOR, label="ranks")
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set(title=label, xlabel="uniform distribution", xlim=(0.0, 1.0))
    panels[0].set_ylabel("empirical - uniform distribution")
    add_legend(panels[0])
    return panels
