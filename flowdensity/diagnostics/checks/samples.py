"""Checks of the model's samples against held-out rows."""

import math

import jax.random as jr
import numpy as np
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

from ..._typing import Key
from ..findings import SIGNIFICANT, Finding, Measured
from ..subject import MAX_POINTS, Subject, first_rows
from .check import AbstractCheck, held_out_rows

SECTION = "Held-out rows against samples"
NUM_NEIGHBORS = 5
"""Number of nearest neighbors that the test considers."""
NUM_SAMPLES = 4096
"""Number of samples that held-out rows are ranked among if all rows have the same context."""
NUM_SAMPLES_PER_ROW = 99
"""Number of samples that each row is ranked among if contexts differ."""


class NearestNeighborTest(AbstractCheck):
    """Goodness of fit by the nearest-neighbor test (Schilling 1986, JASA 81), with a permutation p-value.

    The test compares held-out rows with the same number of samples for the same contexts. It asks whether the nearest neighbors
    of a row are rows more often than by chance.

    Attributes:
        min_p_value: false-alarm rate of the test.
        permutations: number of permutations.

    Examples:
        >>> held_out = density.sample(key, (500,))  # in practice, rows that were not used in the fit
        >>> check = fd.checks.NearestNeighborTest(permutations=1000)
        >>> fd.diagnose(key, density, held_out, checks=(check,))["samples.neighbors"].value
    """

    min_p_value: float = 0.001
    permutations: int = 5000

    name = "nearest_neighbors"
    section = SECTION
    needs = (held_out_rows,)
    randomized = True

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        advice = "Samples of the model differ from the held-out rows: the flow has not learned these data. More rows can help."
        quantity = "p-value of the nearest-neighbor test"
        return (Finding("samples.neighbors", quantity, "at least", self.min_p_value, advice),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        held_out = first_rows(subject.held_out, MAX_POINTS)
        sample_key, swap_key = jr.split(key)
        rows = joint(held_out.states, held_out.contexts)
        both = np.concatenate([rows, joint(subject.draw_given(sample_key, held_out.contexts), held_out.contexts)])
        search = NearestNeighbors(n_neighbors=NUM_NEIGHBORS + 1).fit(both)
        neighbors = search.kneighbors(return_distance=False)[:, 1:]
        is_row = np.arange(len(both)) < len(rows)

        def statistic(is_row: np.ndarray) -> float:
            return float(np.mean(is_row[neighbors] == is_row[:, None]))

        # Only a row and the sample with the same context are exchangeable.
        swaps = np.asarray(jr.bernoulli(swap_key, shape=(self.permutations, len(rows))))
        observed = statistic(is_row)
        exceeding = sum(statistic(is_row ^ np.tile(swap, 2)) >= observed for swap in swaps)
        return {"samples.neighbors": Measured((1 + exceeding) / (1 + self.permutations))}, None


class Coverage(AbstractCheck):
    """Fraction of held-out rows in the model's central 90 % interval of a coordinate, for the worst coordinate.

    Attributes:
        max_error: largest difference from the level of the intervals.
        level: level of the intervals, 90 % by default.

    Examples:
        >>> held_out = density.sample(key, (500,))  # in practice, rows that were not used in the fit
        >>> check = fd.checks.Coverage(level=0.5)
        >>> fd.diagnose(key, density, held_out, checks=(check,))["samples.coverage"].value
    """

    max_error: float = 0.05
    level: float = 0.9

    name = "coverage"
    section = SECTION
    needs = (held_out_rows,)
    randomized = True

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        advice = "Marginals of the model are too wide or too narrow. More rows, or more steps of fd.fit_flow, can help."
        quantity = f"error of the coverage of {100 * self.level:g} % intervals"
        return (Finding("samples.coverage", quantity, "at most", self.max_error, advice),)

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], None]:
        held_out = first_rows(subject.held_out, MAX_POINTS)
        rows = np.asarray(held_out.states)
        if len(np.unique(held_out.contexts, axis=0)) == 1:
            samples = np.sort(np.asarray(subject.draw(key, NUM_SAMPLES).states), axis=0)
            columns = zip(samples.T, rows.T, strict=True)
            ranks = np.stack([np.searchsorted(drawn, column) / NUM_SAMPLES for drawn, column in columns], axis=1)
        else:
            keys = jr.split(key, NUM_SAMPLES_PER_ROW)
            ranks = np.mean([subject.draw_given(each, held_out.contexts) < rows for each in keys], axis=0)
        tail = 0.5 * (1.0 - self.level)
        covered = np.mean((ranks > tail) & (ranks < 1.0 - tail), axis=0)
        errors = np.abs(covered - self.level)
        worst = int(np.argmax(errors))
        standard_error = math.sqrt(self.level * (1.0 - self.level) / len(rows)) * _widened(len(errors))
        return {"samples.coverage": Measured(errors[worst], standard_error, f"y[{worst}]")}, None


def joint(states: object, contexts: object) -> np.ndarray:
    """Return states and contexts side by side, float64."""
    return np.concatenate([np.asarray(states, np.float64), np.asarray(contexts, np.float64)], axis=1)


def _widened(count: int) -> float:
    """Return the factor for a standard error that makes the largest of `count` figures as rarely significant as a single one."""
    return float(norm.isf(norm.sf(SIGNIFICANT) / count) / SIGNIFICANT)
