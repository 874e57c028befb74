"""Whole numbers, such as pixels, as data of a continuous density, and its scores in the unit that is customary for them."""

import math

import jax.random as jr
import numpy as np

from .._checks import check_count, check_key, real_array
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
        TypeError: if `key` is no key, or `data` are no numbers.
        ValueError: if a value is not a whole number of that range, or `levels` is below 2.
    """
    check_key("dequantise", key)
    levels = check_count("dequantise", "levels", levels, least=2, fix=256)
    table = real_array("dequantise", "data", data)
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
        TypeError: if `log_prob` are no real numbers.
        ValueError: if `dim` is no integer of at least 1, or `levels` none of at least 2.
    """
    dim = check_count("bits_per_dimension", "dim", dim, fix=64)
    levels = check_count("bits_per_dimension", "levels", levels, least=2, fix=256)
    return math.log2(levels) - real_array("bits_per_dimension", "log_prob", log_prob) / (dim * math.log(2.0))
