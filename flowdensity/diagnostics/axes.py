"""Axes, legends, lines and colors that all plots share."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .smoothing import Span, smoothed_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # importing matplotlib takes a second, so it is imported when a figure is made

DATA_COLOR, MODEL_COLOR, POSTERIOR_COLOR = "0.55", "#0072B2", "#D55E00"
"""Colors that are distinguishable with color blindness (Okabe and Ito 2008, "Color universal design")."""
MAX_SINGLE = 24
"""Maximum number of panels with a coordinate each."""


def panels_of(caller: str, axes: Any, shape: tuple[int, int], count: int, size: tuple[float, float]) -> np.ndarray:
    """Return the given axes as a flat array, or `count` axes of a new figure; `size` is the size of a panel in inches."""
    if axes is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(shape[1] * size[0], shape[0] * size[1]), layout="constrained")
        axes = [figure.add_subplot(*shape, number + 1) for number in range(count)]
    panels = np.asarray(axes, object).ravel()
    if len(panels) != count or not all(hasattr(axis, "spines") for axis in panels):
        raise ValueError(
            f"{caller} expected `axes` as {count} matplotlib Axes; got {len(panels)} objects. Fix: axes=None"
        )
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
    return panels


def add_legend(*axes: "Axes") -> None:
    """Add a legend to a panel, which may have two axes, and make room for it above the data."""
    for axis in axes:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.4 * (high - low))
    drawn = [each for axis in axes for each in axis.get_legend_handles_labels()[0]]
    axes[-1].legend(handles=drawn, frameon=False, loc="upper right")


def draw_marginal(axis: "Axes", values: np.ndarray, span: Span, **style: Any) -> None:
    """Draw a density estimate of values as a line, without ticks for its height."""
    (middles,), heights, _ = smoothed_density(values[:, None], (span,))
    axis.plot(middles, heights, **style)
    axis.set(xlim=span, ylim=(0.0, 1.05 * max(axis.dataLim.ymax, heights.max())), yticks=[])
    axis.spines["left"].set_visible(False)
