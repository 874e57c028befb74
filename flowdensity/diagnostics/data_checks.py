"""Whether the model has learned the data: held-out rows against its samples and against simpler densities."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, NearestNeighbors

from .._typing import Key
from ..data.statistics import fit_mixture
from ..data.tables import Sample
from .findings import SIGNIFICANT, Finding
from .subject import Subject, values

FALSE_ALARM = 0.001
"""Rate at which the test of goodness of fit rejects a model that is right."""
NEIGHBOURS = 5
PERMUTATIONS = 5000
ROWS = 2000
"""At most so many held-out rows are looked at."""
LEAST = 100
"""Fewer held-out rows say too little about a density."""
SCORE = 0.05
"""Nats by which the held-out log score may be below that of a simpler density."""
FLOOR = 1e-4
"""What is added to the variances of a mixture of normal distributions."""
INTERVAL, COVERAGE = 0.9, 0.05
"""The intervals whose coverage is checked, and by how much it may be off."""
DRAWS, POOL = 99, 4096
"""Samples of the model for each held-out row, or for all where there is but one context; their ranks give the coverage."""

LogScore: TypeAlias = Callable[[np.ndarray, slice], np.ndarray]
"""Log density of the coordinates in a slice, of states and contexts together."""


def goodness_of_fit(key: Key, subject: Subject, held: Sample) -> list[Finding]:
    """Held-out rows and as many samples of the model: is a row's nearest neighbour of its own kind more often than not?

    The nearest-neighbour test of Schilling (1986, JASA 81), by permutation; with contexts, in the joint space.
    """
    section, quantity = "Held-out rows against samples", "p-value of the nearest-neighbour test"
    own_key, swap_key = jr.split(key)
    rows = _joint(held.states, held.contexts)
    own = _joint(subject.at(own_key, held.contexts), held.contexts)
    both = np.concatenate([rows, own])
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(both).kneighbors(return_distance=False)[:, 1:]
    kind = np.arange(len(both)) < len(rows)

    def alike(kind: np.ndarray) -> float:
        return float(np.mean(kind[neighbours] == kind[:, None]))

    # A row and its sample have the same context, and so only they may change places.
    swapped = np.asarray(jr.bernoulli(swap_key, shape=(PERMUTATIONS, len(rows))))
    observed = alike(kind)
    exceeding = sum(alike(kind ^ np.tile(each, 2)) >= observed for each in swapped)
    p = (1 + exceeding) / (1 + PERMUTATIONS)
    words = "Samples of the model differ from the held-out rows: these data it has not learned. More rows can help."
    return [Finding(section, quantity, p, 0.0, "at least", FALSE_ALARM, words)]


def coverage(key: Key, subject: Subject, held: Sample) -> list[Finding]:
    """In how many of the held-out rows a coordinate lies in the model's central 90 % interval, for the worst coordinate."""
    section = "Held-out rows against samples"
    if len(np.unique(held.contexts, axis=0)) == 1:
        draws = np.sort(np.asarray(subject.draw(key, POOL).states), axis=0)
        columns = zip(draws.T, np.asarray(held.states).T, strict=True)
        ranks = np.stack([np.searchsorted(drawn, column) / POOL for drawn, column in columns], axis=1)
    else:
        draws = np.stack([subject.at(each, held.contexts) for each in jr.split(key, DRAWS)])
        ranks = np.mean(draws < np.asarray(held.states), axis=0)
    tail = 0.5 * (1.0 - INTERVAL)
    inside = np.mean((ranks > tail) & (ranks < 1.0 - tail), axis=0)
    off = np.abs(inside - INTERVAL)
    worst = int(np.argmax(off))
    # Of the largest of several figures: as many chances to be off as there are coordinates.
    error = math.sqrt(INTERVAL * (1.0 - INTERVAL) / len(held.states)) * _widened(len(off))
    words = "Marginals of the model are too wide or too narrow. More rows, or more steps of fd.fit_flow, can help."
    return [
        Finding(
            section, f"90 % intervals cover y[{worst}] too often or too seldom by", off[worst], error, "at most", COVERAGE, words
        )
    ]  # fmt: skip


def log_score(key: Key, subject: Subject, held: Sample) -> list[Finding]:
    """The held-out log score against simpler densities, which are fitted to one half of the rows and tested on the other."""
    section = "Held-out log score, gain over"
    rows = _joint(held.states, held.contexts)
    dim = subject.model.dim
    fitted, tested = jnp.array_split(jr.permutation(key, len(rows)), 2)
    own = values(subject.log_prob, held.take(tested))
    words = (
        "A simpler density scores better: the flow is trained too little, or over-fitted. "
        "Fix: density, report = fd.fit_flow(key, data)"
    )
    findings = []
    for name, rival in (
        ("a Gaussian", _mixture(rows[fitted], 1)),
        ("a mixture of Gaussians", _mixture(rows[fitted], 16)),
        ("a kernel density", _kernel(rows[fitted])),
    ):
        score = rival(rows[tested], slice(None))
        if rows.shape[1] > dim:
            score = score - rival(rows[tested], slice(dim, None))
        gain = own - score
        error = gain.std(ddof=1) / math.sqrt(len(gain))
        findings.append(Finding(section, f"{name}, nats", float(gain.mean()), error, "at least", -SCORE, words))
    return findings


def absent(reason: str) -> list[Finding]:
    """What the findings of this file are where there are no held-out rows."""
    return [
        Finding(
            "Held-out rows against samples", "goodness of fit, coverage", None, 0.0, "at least", FALSE_ALARM, reason
        ),
        Finding("Held-out log score, gain over", "simpler densities, nats", None, 0.0, "at least", -SCORE, reason),
    ]


def _joint(states: Any, contexts: Any) -> np.ndarray:
    return np.concatenate([np.asarray(states, np.float64), np.asarray(contexts, np.float64)], axis=1)


def _widened(count: int) -> float:
    """By how much a standard error is widened so that the largest of `count` figures is as seldom significant as one."""
    return float(norm.isf(norm.sf(SIGNIFICANT) / count) / SIGNIFICANT)


def _mixture(rows: np.ndarray, most: int) -> LogScore:
    """A mixture of normal distributions, to which one more is added until Schwarz's criterion says no, or there are `most`."""
    best: Any = fit_mixture(rows, 1, FLOOR)
    for count in (2, 3, 4, 6, 8, 12, 16):
        if count > most or 10 * count * rows.shape[1] > len(rows):
            break
        fitted = fit_mixture(rows, count, FLOOR)
        if fitted.bic(rows) > best.bic(rows):
            break
        best = fitted

    def log_prob(points: np.ndarray, axes: slice) -> np.ndarray:
        parts = zip(best.weights_, best.means_, best.covariances_, strict=True)
        each = [np.log(w) + multivariate_normal(m[axes], c[axes, axes]).logpdf(points[:, axes]) for w, m, c in parts]
        return np.asarray(logsumexp(each, axis=0))

    return log_prob


def _kernel(rows: np.ndarray) -> LogScore:
    """A kernel density, its bandwidth by cross-validation."""
    search = GridSearchCV(KernelDensity(leaf_size=ROWS), {"bandwidth": np.geomspace(0.05, 1.0, 8)}, cv=3).fit(rows)

    def log_prob(points: np.ndarray, axes: slice) -> np.ndarray:
        # Its kernels are round: a marginal is a kernel density of the same bandwidth.
        return KernelDensity(leaf_size=ROWS, **search.best_params_).fit(rows[:, axes]).score_samples(points[:, axes])

    return log_prob
