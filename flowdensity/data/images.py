"""Whole numbers, such as pixels, as data of a continuous density, and its scores in the unit that is customary for them."""

import math
from numbers import Integral

import jax.random as jr
import numpy as np

from .._typing import ArrayLike, Key


def dequantise(key: Key, data: ArrayLike, levels: int = 256) -> np.ndarray:
    r"""Spread whole numbers over the unit interval, $(x + u)/L$ with $u$ uniform on [0, 1).

    The expected log density of the result, plus $D\log(1/L)$, is a lower bound on the log probability of the whole numbers
    (Theis et al. 2016, arXiv 1511.01844).

    Args:
        key: JAX PRNG key.
        data: whole numbers from 0 to `levels - 1`, any shape; a float array of them will do.
        levels: number of levels $L$.

    Returns:
        Float64 array of the same shape, in [0, 1).

    Raises:
        ValueError: if a value is not a whole number of that range, or `levels` is below 2.
    """
    table = np.asarray(data, np.float64)
    _check_levels("dequantise", levels)
    bad = ~((table >= 0) & (table < levels) & (np.floor(table) == table))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"dequantise expected whole numbers from 0 to {levels - 1}; got {table[first]} at index {first}. "
            f"Fix: levels={int(np.nanmax(table)) + 1 if np.isfinite(table).all() else 256}"
        )
    return (table + np.asarray(jr.uniform(key, table.shape), np.float64)) / levels


def bits_per_dimension(log_prob: ArrayLike, dim: int, levels: int = 256) -> np.ndarray:
    r"""Log densities of dequantised events as bits per dimension, $\log_2 L - \log p/(D\ln 2)$: less is better.

    Args:
        log_prob: log densities in nats, any shape.
        dim: number of coordinates of an event.
        levels: as in `dequantise`.

    Returns:
        Array of the same shape.

    Raises:
        ValueError: if `levels` is below 2.
    """
    _check_levels("bits_per_dimension", levels)
    return math.log2(levels) - np.asarray(log_prob, np.float64) / (dim * math.log(2.0))


def _check_levels(caller: str, levels: int) -> None:
    if not isinstance(levels, Integral) or levels < 2:
        raise ValueError(f"{caller} expected `levels` as an integer of at least 2; got {levels!r}. Fix: levels=256")
