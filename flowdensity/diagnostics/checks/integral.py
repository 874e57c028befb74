"""Checks that a density integrates to one."""

import math

import jax.numpy as jnp
import numpy as np

from ..._typing import Key
from ...data.tables import Sample
from ..findings import Finding, Measured
from ..subject import MAX_EXACT_DIM, Subject, values
from .check import AbstractCheck

SECTION = "Normalization"
GRID_SIZE = 64
"""Number of grid points along each coordinate in `IntegralByQuadrature`."""


def exact_log_prob(subject: Subject) -> str | None:
    """Need the exact log density, which is too slow above `MAX_EXACT_DIM` dimensions.

    Examples:
        >>> [check.name for check in fd.checks.CHECKS if fd.checks.exact_log_prob in check.needs]
        ['integral_by_sampling']
    """
    if len(subject.exact_log_probs) == 1:
        return None
    return f"the exact divergence is computed in at most {MAX_EXACT_DIM} dimensions; there are {subject.model.dim}"


def one_or_two_dimensions(subject: Subject) -> str | None:
    """Need an event of at most two dimensions."""
    return None if subject.model.dim <= 2 else "a grid is used in at most two dimensions"


class IntegralBySampling(AbstractCheck):
    """Log of the integral of the learned density, by importance sampling from the flow.

    The exact density of the flow is normalized up to the solver's error.

    Attributes:
        max_log: largest acceptable absolute value, in nats.

    Examples:
        >>> check = fd.checks.IntegralBySampling(max_log=0.02)
        >>> fd.diagnose(key, fast, checks=(check,))["integral.sampling"].value
    """

    max_log: float = 0.1

    name = "integral_by_sampling"
    section = SECTION
    needs = (exact_log_prob,)
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        quantity = "absolute log integral, by sampling, nats"
        return (Finding("integral.sampling", quantity, "at most", self.max_log, _advice(subject)),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        ratios = np.exp(subject.sample_errors[0])
        error = ratios.std() / ratios.mean() / math.sqrt(len(ratios))
        return {"integral.sampling": Measured(abs(math.log(ratios.mean())), error)}, None


class IntegralByQuadrature(AbstractCheck):
    """Log of the integral in one or two dimensions, by the midpoint rule.

    Attributes:
        max_log: largest acceptable absolute value, in nats.

    Examples:
        >>> check = fd.checks.IntegralByQuadrature(max_log=0.02)
        >>> fd.diagnose(key, density, checks=(check,))["integral.quadrature"].value
    """

    max_log: float = 0.1

    name = "integral_by_quadrature"
    section = SECTION
    needs = (one_or_two_dimensions,)
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        quantity = "absolute log integral, by quadrature, nats"
        return (Finding("integral.quadrature", quantity, "at most", self.max_log, _advice(subject)),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        radius = 1.5 * float(jnp.max(jnp.abs(subject.samples.states)))
        coarse, fine = (_log_integral(subject, radius, size) for size in (GRID_SIZE // 2, GRID_SIZE))
        return {"integral.quadrature": Measured(abs(fine), abs(fine - coarse))}, None


def _advice(subject: Subject) -> str:
    return f"The density does not integrate to one. More steps of fd.fit_divergence can help. {subject.exact_line}"


def _log_integral(subject: Subject, radius: float, size: int) -> float:
    """Return the log of the integral over a square, given the context of the first sample."""
    dim, context = subject.model.dim, subject.samples.contexts[0]
    axis = radius * (2.0 * (np.arange(size) + 0.5) / size - 1.0)
    grid = np.stack(np.meshgrid(*[axis] * dim), axis=-1).reshape(-1, dim)
    points = Sample(jnp.asarray(grid, float), jnp.broadcast_to(context, (len(grid), len(context))))
    return float(np.log(np.sum(np.exp(values(subject.log_prob, points)))) + dim * math.log(2.0 * radius / size))
