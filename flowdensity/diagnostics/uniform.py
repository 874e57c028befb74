"""Are ranks uniform? Simultaneous bands of their empirical distribution, and the p-value that belongs to these.

Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
and multiple sample comparison", Statistics and Computing 32, arXiv 2103.10522.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binom

from .._typing import Float, Int

MAX_POINTS = 100
"""Maximum number of ranks at which the distribution is compared. Neighboring ranks give nearly the same comparison."""


def compared_ranks(draws: int) -> Int[np.ndarray, " points"]:
    """Ranks below `draws` at which the empirical distribution is compared, at most a hundred."""
    return np.unique(np.linspace(0, draws - 1, min(draws, MAX_POINTS)).astype(int))


def p_value(ranks: Int[np.ndarray, " simulations"], draws: int) -> float:
    """P-value of a test that ranks are uniform on 0, ..., `draws`. It is exact.

    Each value of the empirical distribution has its own binomial probability. The test statistic is the smallest of these
    two-sided probabilities, and the p-value is the probability that uniform ranks have a smaller one anywhere.
    """
    points, count = compared_ranks(draws), len(ranks)
    below = np.searchsorted(np.sort(ranks), points, side="right")
    smallest = np.min(_two_sided(count, draws)[np.arange(len(points)), below])
    return max(0.0, 1.0 - _probability_within(float(smallest), count, draws))


@lru_cache(maxsize=64)
def band(count: int, draws: int, probability: float) -> Float[np.ndarray, "2 points"]:
    """Lower and upper ends of a band that contains the empirical distribution of uniform ranks with a given probability.

    Args:
        count: number of ranks.
        draws: largest rank.
        probability: probability that the empirical distribution is within the band at all of `compared_ranks`.
    """
    # The probability of staying within the band falls in steps as the level of each point rises.
    found = root_scalar(
        lambda log_level: _probability_within(math.exp(log_level), count, draws) - probability,
        bracket=(math.log(1e-12), 0.0),
        xtol=1e-3,
    )
    low, high = _bounds(math.exp(found.root), count, draws)
    return np.stack([low, high]) / count


@lru_cache(maxsize=8)
def _two_sided(count: int, draws: int) -> Float[np.ndarray, "points numbers"]:
    """Two-sided binomial probability of each number of ranks, 0 to `count`, up to each point."""
    numbers, share = np.arange(count + 1), (compared_ranks(draws)[:, None] + 1) / (draws + 1)
    return np.minimum(1.0, 2.0 * np.minimum(binom.cdf(numbers, count, share), binom.sf(numbers - 1, count, share)))


def _bounds(level: float, count: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest number of ranks up to each point with a two-sided probability above a level."""
    within = _two_sided(count, draws) > level
    # At a level of one no number is within: the most likely number is the limit.
    likeliest = np.floor((count + 1) * (compared_ranks(draws) + 1) / (draws + 1)).astype(int)
    some = within.any(axis=1)
    low = np.where(some, within.argmax(axis=1), likeliest)
    high = np.where(some, count - within[:, ::-1].argmax(axis=1), likeliest)
    return low, high


def _probability_within(level: float, count: int, draws: int) -> float:
    """Probability that all values of the empirical distribution of uniform ranks have two-sided probabilities above a level."""
    low, high = _bounds(level, count, draws)
    numbers, chances, before = np.zeros(1, int), np.ones(1), 0.0
    for least, most, share in zip(low, high, (compared_ranks(draws) + 1) / (draws + 1), strict=True):
        # Ranks that are not below the former point are below this one independently of each other.
        reached = np.arange(least, most + 1)
        step = binom.pmf(reached - numbers[:, None], count - numbers[:, None], (share - before) / (1.0 - before))
        numbers, chances, before = reached, chances @ step, share
    return float(np.sum(chances))
