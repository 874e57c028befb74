"""Are ranks uniform? Simultaneous bands of their empirical distribution, and the p-value that belongs to these.

Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
and multiple sample comparison", Statistics and Computing 32, arXiv 2103.10522.
"""

from functools import lru_cache

import numpy as np
from scipy.stats import binom

from .._typing import Float, Int

MAX_POINTS = 100
"""Maximum number of ranks at which the distribution is compared. Neighboring ranks give nearly the same comparison."""
SMALL_P_VALUE = 1e-6
"""P-values below this number are replaced by an upper bound, since they are differences of numbers close to one."""


def compared_ranks(draws: int) -> Int[np.ndarray, " points"]:
    """Ranks below `draws` at which the empirical distribution is compared, at most a hundred."""
    return np.unique(np.linspace(0, draws - 1, min(draws, MAX_POINTS)).astype(int))


def uniform_distribution(draws: int) -> Float[np.ndarray, " points"]:
    """Probability that a uniform rank is at most each of `compared_ranks`."""
    return (compared_ranks(draws) + 1) / (draws + 1)


def ranks_up_to_points(ranks: Int[np.ndarray, " simulations"], draws: int) -> Int[np.ndarray, " points"]:
    """Number of ranks that are at most each of `compared_ranks`."""
    return np.searchsorted(np.sort(ranks), compared_ranks(draws), side="right")


def p_value(ranks: Int[np.ndarray, " simulations"], draws: int) -> float:
    """P-value of a test that ranks are uniform on 0, ..., `draws`. It is exact, but an upper bound where it is very small.

    Each value of the empirical distribution has its own binomial probability. The test statistic is the smallest of these
    two-sided probabilities, and the p-value is the probability that uniform ranks have one that is as small anywhere.
    """
    below, count = ranks_up_to_points(ranks, draws), len(ranks)
    smallest = float(np.min(_two_sided(count, draws)[np.arange(len(below)), below]))
    bound = len(below) * smallest
    return bound if bound < SMALL_P_VALUE else 1.0 - _probability_within(smallest, count, draws)


@lru_cache(maxsize=64)
def band(count: int, draws: int, probability: float) -> Float[np.ndarray, "2 points"]:
    """Lower and upper ends of a band that contains the empirical distribution of uniform ranks with at least a given probability.

    Ranks leave the band exactly if their p-value is at most one minus the probability.

    Args:
        count: number of ranks.
        draws: largest rank.
        probability: probability that the empirical distribution is within the band at all of `compared_ranks`.
    """
    # The largest level of the points for which the band is wide enough. Below the first one, the union bound says that it is.
    levels = np.unique(_two_sided(count, draws))
    first = np.searchsorted(levels, (1.0 - probability) / len(compared_ranks(draws)))
    low, high = max(0, int(first) - 1), len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        enough = _probability_within(float(levels[middle]), count, draws) >= probability
        low, high = (middle, high) if enough else (low, middle - 1)
    return np.stack(_bounds(float(levels[low]), count, draws)) / count


@lru_cache(maxsize=8)
def _two_sided(count: int, draws: int) -> Float[np.ndarray, "points numbers"]:
    """Two-sided binomial probability of each number of ranks, 0 to `count`, up to each point."""
    numbers, share = np.arange(count + 1), uniform_distribution(draws)[:, None]
    return np.minimum(1.0, 2.0 * np.minimum(binom.cdf(numbers, count, share), binom.sf(numbers - 1, count, share)))


def _bounds(level: float, count: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest number of ranks up to each point with a two-sided probability above a level; 1 and 0 if none has."""
    # Equal probabilities of the two tails may differ by rounding.
    within = _two_sided(count, draws) > (1.0 + 1e-9) * level
    some = within.any(axis=1)
    return np.where(some, within.argmax(axis=1), 1), np.where(some, count - within[:, ::-1].argmax(axis=1), 0)


def _probability_within(level: float, count: int, draws: int) -> float:
    """Probability that all values of the empirical distribution of uniform ranks have two-sided probabilities above a level."""
    numbers, chances, before = np.zeros(1, int), np.ones(1), 0.0
    for least, most, share in zip(*_bounds(level, count, draws), uniform_distribution(draws), strict=True):
        # Ranks that are not below the former point are below this one independently of each other.
        reached = np.arange(least, most + 1)
        step = binom.pmf(reached - numbers[:, None], count - numbers[:, None], (share - before) / (1.0 - before))
        numbers, chances, before = reached, chances @ step, share
    return float(np.sum(chances))
