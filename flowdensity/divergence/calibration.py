"""Checking a learned divergence against the Stein identity, and removing its remaining bias."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._registry import savable
from .._typing import Array, Float
from ..data.statistics import mean_and_error, shares
from ..models.flows import AbstractProbabilityFlow
from .kernel import Kernel, MeanJacobian, SteinTerms, map_kernels, stein_terms
from .stein import DivergenceHead

NUM_BINS = 8
"""Number of time bins over which residuals are averaged."""


@savable
@dataclass(frozen=True)
class Residuals:
    r"""Means of the Stein residual $(g - T)f - r\cdot\nabla f$ in each time bin, which are zero when $g = \nabla\cdot F$.

    Attributes:
        times: edges of the bins in the model's own time, which is an angle for a model on a Gaussian probability path, shape
            `(bins + 1,)`.
        functions: names of the test functions $f$, length `functions`.
        mean: means, shape `(bins, functions)`, in nats per unit of time times the unit of $f$.
        standard_error: standard errors of the means, same shape.

    Examples:
        >>> divergence, report = fd.fit_divergence(key, density.model, data)
        >>> bias, standard_error = report.residuals.bias
        >>> np.mean(np.abs(report.residuals.z) > 2.0)  # 5 % are expected
    """

    times: np.ndarray
    functions: tuple[str, ...]
    mean: np.ndarray
    standard_error: np.ndarray

    @property
    def z(self) -> np.ndarray:
        """Means divided by their standard errors, shape `(bins, functions)`."""
        return self.mean / self.standard_error

    @property
    def bias(self) -> tuple[float, float]:
        """Implied mean error of `log_prob` over samples of the model, in nats, and its standard error.

        It is minus the integral over time of the mean for f = 1.
        """
        widths = np.diff(self.times)
        return (
            -float(np.sum(widths * self.mean[:, 0])),
            float(np.sqrt(np.sum(np.square(widths * self.standard_error[:, 0])))),
        )


@eqx.filter_jit
def _all_terms(
    head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel
) -> SteinTerms:
    return map_kernels(lambda kernel: stein_terms(head, model, control, kernel), kernels)


def stein_residuals(
    head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel
) -> Residuals:
    r"""Compute means of $(g - T)f - r\cdot\nabla f$ in eight time bins, for $f$ = 1, $g$ and each coordinate of $y$.

    If $g = \nabla\cdot F$, all means are zero within their standard errors. None needs a Jacobian. They are in nats per unit of
    time for any velocity scale.
    """
    terms = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), _all_terms(head, model, control, kernels))
    error = terms.value - terms.target
    unit = np.asarray(jax.vmap(lambda t: jnp.asarray(model.velocity_scale(t), float))(kernels.time), np.float64)
    # The draws of a frame are not independent, so they are averaged first.
    columns = unit[:, None] * np.column_stack(
        [
            error.mean(1),
            (error * terms.value - terms.slope).mean(1),
            (error[..., None] * terms.point - terms.displacement).mean(1),
        ]
    )
    time = np.asarray(kernels.time, np.float64)
    first, last = np.asarray(model.times(1), np.float64)
    edges = np.linspace(first, last, NUM_BINS + 1)
    which = np.clip(np.floor((time - first) / (last - first) * NUM_BINS), 0, NUM_BINS - 1)
    # Times have the distribution of the training. Each frame is weighted by the length of time around its own time.
    about = np.empty_like(time)
    order = np.argsort(time)
    about[order] = np.gradient(time[order])
    bins = [_weighted(columns[which == i], about[which == i]) for i in range(NUM_BINS)]
    return Residuals(
        times=edges,
        functions=("1", "g", *(f"y[{i}]" for i in range(terms.point.shape[-1]))),
        mean=np.stack([mean for mean, _ in bins]),
        standard_error=np.stack([error for _, error in bins]),
    )


def _weighted(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of rows, shape `(rows, columns)`, and their standard errors."""
    count, share = len(rows), shares(weights, len(rows))
    means, errors = zip(*(mean_and_error(column, share, np.arange(count)) for column in rows.T), strict=True)
    return np.asarray(means), np.sqrt(count / (count - 1.0)) * np.asarray(errors)


def calibrate(
    head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel
) -> DivergenceHead:
    r"""Remove from the head the mean error that its Stein residuals show, as a smooth function of the angle.

    The residual $g - T$ is regressed on a few cosines of the angle. Each coefficient is shrunk by the positive part of
    $1 - \mathrm{se}^2/\hat\beta^2$, so that coefficients within their standard error have no effect.
    """
    terms = _all_terms(head, model, control, kernels)
    basis = np.asarray(jax.vmap(jax.vmap(head.basis, in_axes=(None, 0)))(kernels.time, terms.point), np.float64)
    error = np.asarray(terms.value - terms.target, np.float64)
    inverse = np.linalg.inv(np.einsum("nfi,nfj->ij", basis, basis))
    coefficients = inverse @ np.einsum("nfi,nf->i", basis, error)
    # The draws of a frame are not independent, so each frame has one score.
    scores = np.einsum("nfi,nf->ni", basis, error - basis @ coefficients)
    variance = np.diag(inverse @ (scores.T @ scores) @ inverse)
    shrunk = coefficients * np.maximum(0.0, 1.0 - variance / np.square(coefficients))
    offset: Float[Array, " basis"] = head.offset - jnp.asarray(shrunk, float)
    return eqx.tree_at(lambda h: h.offset, head, offset)
