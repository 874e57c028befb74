"""Check of the held-out log score against simpler densities."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from ..._typing import Key
from ...data.statistics import fit_mixture
from ..findings import Finding, Measured
from ..subject import MAX_HELD_OUT_ROWS, Subject, values
from .check import AbstractCheck, held_out_rows
from .samples import joint

MIN_VARIANCE = 1e-4
"""Variance that is added to the components of a mixture, in whitened units."""
COMPONENTS = (2, 3, 4, 6, 8, 12, 16)
"""Numbers of components that are tried for the mixture."""

MarginalLogProb: TypeAlias = Callable[[np.ndarray, slice], np.ndarray]
"""Log density of the coordinates in a slice, for rows with states and contexts side by side."""


class LogScore(AbstractCheck):
    """Gain in the mean log density of held-out rows over simpler densities.

    The simpler densities are fitted to one half of the held-out rows, and all densities are scored on the other half.

    Attributes:
        min_gain: smallest acceptable gain, in nats.

    Examples:
        >>> held_out = density.sample(key, (500,))  # in practice, rows that were not used in the fit
        >>> check = fd.checks.LogScore(min_gain=0.0)
        >>> fd.diagnose(key, density, held_out, checks=(check,))["score.gaussian"].value
    """

    min_gain: float = -0.05

    name = "score"
    section = "Held-out log score, gain over"
    needs = (held_out_rows,)
    randomized = True

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        advice = (
            "A simpler density scores better: the flow is trained too little, or over-fitted. "
            "Fix: density, report = fd.fit_flow(key, data)"
        )
        rivals = {"gaussian": "a Gaussian", "mixture": "a mixture of Gaussians", "kernel": "a kernel density"}
        return tuple(
            Finding(f"score.{id}", f"{name}, nats", "at least", self.min_gain, advice) for id, name in rivals.items()
        )

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        dim = subject.model.dim
        rows = joint(subject.held_out.states, subject.held_out.contexts)
        fitted, scored = jnp.array_split(jr.permutation(key, len(rows)), 2)
        own = values(subject.log_prob, subject.held_out.take(scored))
        figures = {}
        for id, rival in (
            ("score.gaussian", _mixture(rows[fitted], ())),
            ("score.mixture", _mixture(rows[fitted], COMPONENTS)),
            ("score.kernel", _kernel_density(rows[fitted])),
        ):
            log_probs = rival(rows[scored], slice(None))
            if rows.shape[1] > dim:
                log_probs = log_probs - rival(rows[scored], slice(dim, None))
            gains = own - log_probs
            figures[id] = Measured(gains.mean(), gains.std(ddof=1) / math.sqrt(len(gains)))
        return figures, None


def _mixture(rows: np.ndarray, components: tuple[int, ...]) -> MarginalLogProb:
    """Fit a Gaussian, and mixtures with more components as long as each lowers the Bayesian information criterion (BIC)."""
    best: Any = fit_mixture(rows, 1, MIN_VARIANCE)
    for count in components:
        if 10 * count * rows.shape[1] > len(rows):
            break
        fitted = fit_mixture(rows, count, MIN_VARIANCE)
        if fitted.bic(rows) > best.bic(rows):
            break
        best = fitted

    def log_prob(points: np.ndarray, axes: slice) -> np.ndarray:
        parts = zip(best.weights_, best.means_, best.covariances_, strict=True)
        each = [np.log(w) + multivariate_normal(m[axes], c[axes, axes]).logpdf(points[:, axes]) for w, m, c in parts]
        return np.asarray(logsumexp(each, axis=0))

    return log_prob


def _kernel_density(rows: np.ndarray) -> MarginalLogProb:
    """Fit a kernel density with a cross-validated bandwidth."""
    # A leaf that holds all rows avoids a tree, which would be slower for so few rows.
    grid = {"bandwidth": np.geomspace(0.05, 1.0, 8)}
    search = GridSearchCV(KernelDensity(leaf_size=MAX_HELD_OUT_ROWS), grid, cv=3).fit(rows)

    def log_prob(points: np.ndarray, axes: slice) -> np.ndarray:
        # The kernel is isotropic, so a marginal is a kernel density with the same bandwidth.
        density = KernelDensity(leaf_size=MAX_HELD_OUT_ROWS, **search.best_params_).fit(rows[:, axes])
        return density.score_samples(points[:, axes])

    return log_prob
